"""Write progress as plain lines, for files and batch systems: few of them, each worth reading."""

from __future__ import annotations

from collections.abc import Callable

from lt_core.callbacks.progress.forecast import duration_text
from lt_core.callbacks.progress.view import View, metrics_text
from lt_core.notices import say

__all__ = ["PlainLines", "line"]


def line(view: View, finished: bool = False, number: str = ".3f") -> str:
    """Return a view as one line."""
    if finished:
        left = f"run {duration_text(view.run_left)} left" if (view.run_left or 0) > 0.5 else ""
        parts = [f"{view.title}: {view.counts} batches {view.took}", left, metrics_text(view.kept, number)]
    elif view.inner is not None:
        inner = view.inner
        parts = [
            f"{view.title}, {inner.title}: {inner.counts} batches",
            inner.times,
            metrics_text(view.metrics, number),
        ]
    else:
        parts = [f"{view.title}: {view.counts} batches", view.speed, view.times, metrics_text(view.metrics, number)]
    return ", ".join(part for part in parts if part)


class PlainLines:
    """Display that writes a line now and then, and one at the end of each loop.

    Args:
        interval: The least seconds between two lines of a loop that goes on.
        write: Takes a line; None prints it.
        number: The format of numbers.
    """

    def __init__(self, interval: float = 10.0, write: Callable[[str], None] | None = None, number: str = ".3f") -> None:
        self.interval = interval
        self._number = number
        self._write = write or say

    def show(self, view: View) -> None:
        """Write a line, if anything was done."""
        if view.done or view.inner is not None:
            self._write(line(view, number=self._number))

    def finish(self, view: View) -> None:
        """Write the last line of a loop."""
        self._write(line(view, finished=True, number=self._number))

    def write(self, text: str) -> None:
        """Write any text."""
        self._write(text)

    def close(self) -> None:
        """Do nothing: lines need no tidying."""
