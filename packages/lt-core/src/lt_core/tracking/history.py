"""Return what a fit logged: a table with one row an epoch, and each metric's series by step."""

from __future__ import annotations

import base64
import html
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lt_interface.errors import LTError, Problem

if TYPE_CHECKING:
    from lt_core.tracking.journal import Journal
    from lt_core.tracking.picture import Picture

__all__ = ["History"]

_ROWS = 20  # that a notebook shows


class History(dict[str, list[float]]):
    """Last value that each metric had in each epoch of a fit: lists of one length, nan where it was not logged.

    ``pandas.DataFrame(trainer.history)`` is a table with one row an epoch, ``pandas.DataFrame(trainer.history.steps)``
    one with a row for each step at which something was logged. A notebook shows the table and the curves.

    Attributes:
        steps: For each metric all its values by their x-axis; of several at one step the newest.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[str, dict[int, float]] = {}

    @classmethod
    def read(cls, journal: Journal, epochs: int | None = None) -> History:
        """Return the history that a journal holds; what validate and test logged is no part of it.

        Args:
            journal: The journal.
            epochs: How many epochs have begun; as many as the records need if None. What is logged after the last one
                belongs to that.
        """
        history, records = cls(), [(r.epoch, r) for r in journal.read() if r.epoch is not None]
        if not records:
            return history
        count = max(1, epochs or max(epoch for epoch, _ in records) + 1)
        history["epoch"] = []
        for epoch, record in records:
            for name, value in record.values.items():
                history.setdefault(name, [math.nan] * count)
                if name != "epoch":  # the user's own may count otherwise
                    history[name][min(epoch, count - 1)] = value
                history.steps.setdefault(name, {})[record.step] = value
        history["epoch"] = list(range(count))
        return history

    def to_frame(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row an epoch.

        Raises:
            LTError: If pandas is missing; names the command that installs it.
        """
        try:
            return import_module("pandas").DataFrame(self)
        except ImportError:
            raise _lacking("History.to_frame", "pandas", "pandas") from None

    def plot(self, path: str | os.PathLike[str] | None = None, keys: Iterable[str] | None = None) -> Picture:
        """Draw one panel for each group of metrics: ``loss`` and ``val_loss`` share one.

        Args:
            path: Where to save the picture, or None.
            keys: The metrics to draw; all but the epoch if None.

        Returns:
            A matplotlib figure, which a notebook shows as the last line of a cell.

        Raises:
            LTError: If matplotlib is missing; names the command that installs it.
            KeyError: If a name was never logged.
        """
        try:
            from lt_core.tracking.picture import Picture
        except ImportError:
            raise _lacking("History.plot", "matplotlib", "'lt-core[plot]'") from None
        chosen = [k for k in self if k != "epoch"] if keys is None else list(keys)
        for key in chosen:
            if key not in self.steps:
                raise KeyError(f"{key!r} was never logged. Logged: {', '.join(self)}")
        figure = Picture.of({key: self.steps[key] for key in chosen})
        if path is not None:
            figure.savefig(os.fspath(path), dpi=120)
        return figure

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the last rows, and the curves where matplotlib is installed."""
        if not self:
            return "<div>Nothing was logged.</div>"
        count, names = len(self["epoch"]), "".join(f"<th>{html.escape(name)}</th>" for name in self)
        rows = [
            "".join(
                f"<td>{'' if math.isnan(values[row]) else format(values[row], '.5g')}</td>" for values in self.values()
            )
            for row in range(max(count - _ROWS, 0), count)
        ]
        shown = [
            f"<table style='white-space: nowrap'><tr>{names}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
        ]
        if count > _ROWS:
            shown.insert(0, f"<div>The last {_ROWS} of {count} epochs</div>")
        with suppress(LTError):
            picture = base64.b64encode(self.plot()._repr_png_()).decode()
            shown.append(f'<img alt="metrics by step" src="data:image/png;base64,{picture}">')
        return "".join(shown)


def _lacking(where: str, package: str, install: str) -> LTError:
    return LTError(Problem(where, f"this needs {package}", fix=f"Run: pip install {install}"))
