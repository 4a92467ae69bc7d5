"""Take texts and tables of texts in one call, for loggers that keep the two apart."""

from __future__ import annotations

from typing import Any

from lt_interface import Logger, is_rank_zero

__all__ = ["TextsAndTables"]


class TextsAndTables(Logger):
    """Be the part of a logger that has a text shown by `_show_text` and a table by ``log_table``."""

    def log_text(
        self,
        key: str,
        text: Any = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
        columns: list[str] | None = None,
    ) -> None:
        """Show a text, or a table of texts.

        Args:
            key: The name it stands under.
            text: The text, laid out as Markdown where the tracker does so; or the names of a table's columns.
            data: The table's rows.
            dataframe: A data frame in place of both.
            step: The step; None takes the run's, or 0 outside of a run.
            columns: The names of the columns, by their own name.
        """
        if data is not None or dataframe is not None:
            self.log_table(key, columns or text, data, dataframe, step)
        elif is_rank_zero():
            self._show_text(key, str(text), self.step_or_current(step) or 0)

    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Show a table; each logger in its own way."""
        raise NotImplementedError

    def _show_text(self, key: str, text: str, step: int) -> None:
        raise NotImplementedError
