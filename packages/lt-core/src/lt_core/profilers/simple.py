"""Measure how long each action took in all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from lt_core.profilers.base import MeasuringProfiler

__all__ = ["SimpleProfiler", "table"]


def table(title: str, rows: Iterable[tuple[str, ...]]) -> str:
    """Return rows as a table with lines between head and body, each column as wide as it must be.

    Args:
        title: What stands above it.
        rows: The head and the body's rows: texts of cells.
    """
    head, *body = rows
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in body]
    first = "  ".join(cell.ljust(width) for cell, width in zip(head, widths, strict=True))
    rule = "-" * len(first)
    return "\n".join([title, rule, first.rstrip(), rule, *lines, rule, ""])


class SimpleProfiler(MeasuringProfiler):
    """Profiler that adds up the seconds of each action, and says what the run waited for.

    An action's seconds include those of the actions inside it; the verdict counts each second once. The overhead is a
    microsecond an action, some 5 % of a step of 150 us.

    Args:
        dirpath: The folder of the report; None means the trainer's ``default_root_dir``.
        filename: The middle of the report's file name; None and no ``dirpath`` mean that it is printed.
        extended: Whether the table has the number of calls and the share of the time as well.

    Example:
        >>> from lt_core import Trainer
        >>> from lt_core.demos import BoringModel
        >>> quiet = dict(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
        >>> profiler = SimpleProfiler(dirpath="profiles", filename="small")
        >>> trainer = Trainer(accelerator="cpu", max_steps=5, logger=False, profiler=profiler, **quiet)
        >>> trainer.fit(BoringModel())
        >>> len(profiler.recorded_durations["run_training_batch"])
        5
        >>> sorted(profiler.verdict()["phases"]["computing"])
        ['calls', 'seconds', 'share']
    """

    _word = "simple"

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        extended: bool = True,
    ) -> None:
        super().__init__(dirpath, filename)
        self.extended = extended

    def report(self) -> str:
        """Return the table of the actions, those that took longest first."""
        rows = [("Action", "Mean (s)", "Calls", "Total (s)", "Share")]
        whole = self.elapsed
        durations = {name: (sum(seconds), len(seconds)) for name, seconds in self.recorded_durations.items() if seconds}
        for name, (total, calls) in sorted(durations.items(), key=lambda item: -item[1][0]):
            share = f"{100 * total / whole:.1f} %"
            shown = re.sub(r"\{.*\}", "{...}", name)  # of a callback's key
            rows.append((shown, f"{total / calls:.5g}", str(calls), f"{total:.5g}", share))
        chosen = rows if self.extended else [(name, mean, total) for name, mean, _, total, _ in rows]
        return table(f"{type(self).__name__}: {self._stage or 'no run'}, {whole:.4g} s", chosen)
