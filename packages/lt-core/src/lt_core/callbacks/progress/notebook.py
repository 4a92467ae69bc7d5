"""Draw progress in a notebook's cell: one block of HTML that is replaced, no widgets needed."""

from __future__ import annotations

import html
from typing import Any

from lt_core.callbacks.progress.view import View, metrics_text

__all__ = ["NotebookDisplay", "markup"]


def markup(view: View, number: str = ".3f") -> str:
    """Return a view as HTML."""
    rows = [_bar(view)] if view.inner is None else [_bar(view), _bar(view.inner)]
    metrics = html.escape(metrics_text(view.metrics, number))
    return f"<div>{'<br>'.join(rows)}<pre>{metrics}</pre></div>"


def _bar(view: View) -> str:
    state = "" if view.total is None else f' value="{view.done}" max="{view.total}"'
    words = ", ".join(part for part in (view.counts, view.speed, view.times) if part)
    return f"{html.escape(view.title)} <progress{state}></progress> {html.escape(words)}"


class NotebookDisplay:
    """Display in one block of the cell's output, which is replaced in place.

    Args:
        leave: Whether each finished epoch keeps its block.
        number: The format of numbers.
    """

    interval = 0.5

    def __init__(self, leave: bool = False, number: str = ".3f") -> None:
        self._leave = leave
        self._number = number
        self._handle: Any = None

    def show(self, view: View) -> None:
        """Replace the block."""
        from importlib import import_module

        ipython = import_module("IPython.display")  # the notebook's own; this package does not need it

        block = ipython.HTML(markup(view, self._number))
        if self._handle is None:
            self._handle = ipython.display(block, display_id=True)
        else:
            self._handle.update(block)

    def finish(self, view: View) -> None:
        """Draw the loop's last view."""
        self.show(view)
        if self._leave:
            self._handle = None

    def write(self, text: str) -> None:
        """Write text into the cell."""
        print(text)

    def close(self) -> None:
        """Begin a new block next time."""
        self._handle = None
