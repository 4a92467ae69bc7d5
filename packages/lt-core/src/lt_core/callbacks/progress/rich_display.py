"""Draw progress on a terminal with rich. Imported only when it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.table import Column

from lt_core.callbacks.progress.view import View, metrics_text

if TYPE_CHECKING:
    from lt_core.callbacks.progress.bar import RichProgressBarTheme

__all__ = ["RichDisplay", "default_columns"]


def default_columns(theme: RichProgressBarTheme) -> list[ProgressColumn]:
    """Return title, bar, counts, times, speed and metrics."""
    return [
        TextColumn("{task.description}", style=theme.description, markup=False),
        BarColumn(
            bar_width=24,
            complete_style=theme.progress_bar,
            finished_style=theme.progress_bar_finished,
            pulse_style=theme.progress_bar_pulse,
        ),
        TextColumn("{task.fields[counts]}", style=theme.batch_progress, markup=False),
        TextColumn("{task.fields[times]}", style=theme.time, markup=False),
        TextColumn("{task.fields[speed]}", style=theme.processing_speed, markup=False),
        # Where room is short the metrics go on below; all else keeps its width, but for the bar.
        TextColumn("{task.fields[metrics]}", style=theme.metrics, markup=False, table_column=Column(overflow="fold")),
    ]


class RichDisplay:
    """Display of bars that stay at the bottom while text scrolls above.

    Args:
        columns: What a bar consists of; each sees the view's words as ``task.fields``.
        theme: Styles and formats.
        leave: Whether each finished epoch keeps its bar.
        console_kwargs: Arguments of ``rich.console.Console``.
    """

    interval = 0.1

    def __init__(
        self, columns: list[ProgressColumn], theme: RichProgressBarTheme, leave: bool, console_kwargs: dict[str, Any]
    ) -> None:
        self._columns = columns
        self._theme = theme
        self._leave = leave
        self._console = Console(**console_kwargs)
        self._progress: Progress | None = None
        self._tasks: list[TaskID] = []

    def show(self, view: View) -> None:
        """Draw a view now; nothing is drawn between, so no thread is needed."""
        progress = self._progress
        if progress is None:
            progress = self._progress = Progress(*self._columns, console=self._console, auto_refresh=False)
            progress.start()
        views = [view] if view.inner is None else [view, view.inner]
        while len(self._tasks) > len(views):
            progress.remove_task(self._tasks.pop())
        for index, each in enumerate(views):
            fields: dict[str, Any] = {name: getattr(each, name) for name in ("counts", "times", "speed")}
            number, delimiter = self._theme.metrics_format, self._theme.metrics_text_delimiter
            fields["metrics"] = metrics_text(each.metrics, number, delimiter)
            if index == len(self._tasks):
                self._tasks.append(progress.add_task(each.title, total=each.total, completed=each.done, **fields))
            else:
                # update() keeps a total for None, so an unknown one is set by hand.
                progress.tasks[index].total = each.total
                progress.update(self._tasks[index], description=each.title, completed=each.done, **fields)
        progress.refresh()

    def finish(self, view: View) -> None:
        """Draw the loop's last view."""
        self.show(view)
        if self._leave:
            self.close()

    def write(self, text: str) -> None:
        """Write text above the bars."""
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the bars as they are and show the cursor again."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = None
        self._tasks = []
