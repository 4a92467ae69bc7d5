"""Draw progress in a notebook's cell: one block of HTML that is replaced, no widgets needed."""

from __future__ import annotations

import html
from typing import Any

from lt_core.callbacks.progress.forecast import taken_text
from lt_core.callbacks.progress.lines import line
from lt_core.callbacks.progress.view import View, metrics_text, value_text

__all__ = ["NotebookDisplay", "markup"]

_ROWS = 50  # of finished epochs, the newest


def markup(view: View, number: str = ".3f") -> str:
    """Return a view as HTML."""
    rows = [_bar(view)] if view.inner is None else [_bar(view), _bar(view.inner)]
    metrics = html.escape(metrics_text(view.metrics, number))
    return f"<div>{'<br>'.join(rows)}<pre style='white-space: pre-wrap'>{metrics}</pre></div>"


def _bar(view: View) -> str:
    state = "" if view.total is None else f' value="{view.done}" max="{view.total}"'
    words = ", ".join(part for part in (view.counts, view.speed, view.times) if part)
    return f"{html.escape(view.title)} <progress{state}></progress> {html.escape(words)}"


def _table(views: list[View], number: str) -> str:
    """Return loops that are over as a table with a row for each."""
    names = list(dict.fromkeys(name for view in views for name in view.kept))
    rows = [["", "batches", "time", *names]]
    for view in views:
        metrics = [value_text(view.kept[name], number) if name in view.kept else "" for name in names]
        rows.append([view.title, view.counts, taken_text(view.elapsed), *metrics])
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table style='white-space: nowrap'>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>".replace(
        "td>", "th>", 2 * len(rows[0])
    )


class NotebookDisplay:
    """Display in one block of the cell's output, which is replaced in place.

    Args:
        leave: What a finished epoch leaves: its block, nothing, or a row of a table if None.
        number: The format of numbers.
    """

    interval = 0.5

    def __init__(self, leave: bool | None = None, number: str = ".3f") -> None:
        self._leave = leave
        self._number = number
        self._handle: Any = None
        self._over: list[View] = []

    def show(self, view: View) -> None:
        """Replace the block."""
        self._replace(markup(view, self._number), line(view, number=self._number))

    def _replace(self, block: str, text: str) -> None:
        from importlib import import_module

        ipython = import_module("IPython.display")  # the notebook's own; this package does not need it
        above = _table(self._over, self._number) if self._over else ""
        forms = {"text/html": above + block, "text/plain": text}
        if self._handle is None:
            self._handle = ipython.display(forms, raw=True, display_id=True)
        else:
            self._handle.update(forms, raw=True)

    def finish(self, view: View) -> None:
        """Draw the loop's last view, or add its row."""
        if self._leave is None:
            self._over = [*self._over, view][-_ROWS:]
            text = "\n".join(line(each, finished=True, number=self._number) for each in self._over)
            self._replace("", text)
            return
        self.show(view)
        if self._leave:
            self._handle = None

    def write(self, text: str) -> None:
        """Write text into the cell."""
        print(text)

    def close(self) -> None:
        """Begin a new block next time."""
        self._handle, self._over = None, []
