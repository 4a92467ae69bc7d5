"""Draw progress on a terminal with rich. Imported only when it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

from lt_core.callbacks.progress.view import View, ended_text, metrics_text, metrics_texts, packed

if TYPE_CHECKING:
    from lt_core.callbacks.progress.rich_progress import RichProgressBarTheme

__all__ = ["RichDisplay", "default_columns"]

_LINES = 3  # that all bars together take at most
_SHORTEST, _LONGEST = 10, 24  # of a bar


class _Metrics(ProgressColumn):
    """Column of the metrics, each of which may stand on another line."""

    def __init__(self, style: str, delimiter: str) -> None:
        super().__init__()
        self.style, self.delimiter = style, delimiter

    def render(self, task: Task) -> Text:
        """Return all metrics in one line."""
        return Text(task.fields["metrics"], self.style)


def default_columns(theme: RichProgressBarTheme) -> list[ProgressColumn]:
    """Return title, bar, counts, times, speed and metrics."""
    return [
        TextColumn("{task.description}", style=theme.description, markup=False),
        BarColumn(
            bar_width=None,
            complete_style=theme.progress_bar,
            finished_style=theme.progress_bar_finished,
            pulse_style=theme.progress_bar_pulse,
        ),
        TextColumn("{task.fields[counts]}", style=theme.batch_progress, markup=False),
        TextColumn("{task.fields[times]}", style=theme.time, markup=False),
        TextColumn("{task.fields[speed]}", style=theme.processing_speed, markup=False),
        _Metrics(theme.metrics, theme.metrics_text_delimiter),
    ]


class _Bars(Progress):
    """Bars whose columns go on in the next line where there is no room: no word or number is broken."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the lines of each bar; an inner one takes a line from the outer one's metrics."""
        tasks = [task for task in self.tasks if task.visible]
        for number, task in enumerate(tasks):
            yield from self._lines_of(task, _LINES + 1 - len(tasks) if number == 0 else 1)

    def _lines_of(self, task: Task, most: int) -> Iterable[_Line]:
        width = self.console.width
        head, metrics = list[tuple[RenderableType, int]](), list[tuple[RenderableType, int]]()
        for column in self.columns:
            if isinstance(column, _Metrics):
                texts, end = task.fields["texts"], column.delimiter.rstrip()
                shown = [_shortened(text, width) for text in [*(f"{text}{end}" for text in texts[:-1]), *texts[-1:]]]
                stacked = "\n" in column.delimiter  # each has a line of its own, as it was asked for
                most += len(texts) * stacked
                metrics += [(Text(text, column.style), width if stacked else cell_len(text)) for text in shown]
            else:
                part = Text(column.format(task=task)) if isinstance(column, str) else column(task)
                words = part.split(" ") if isinstance(part, Text) and part.cell_len > width else [part]
                head += [(word, wide) for word in words if (wide := self._size(word))]
        lines, left = packed(head + metrics, width, most)
        if len(lines) > 1 and metrics and most > 1 and len(packed(head, width, most)[0]) == 1:
            lines, left = packed(metrics, width, most - 1)  # all of them below the bar, where they do not fit beside it
            lines.insert(0, [part for part, _ in head])
        if left and metrics:
            lines[-1].append(Text(f"+{min(left, len(metrics))} more", "dim"))
        for line in lines:
            room = width + 1 - sum(self._size(part) + 1 for part in line)
            for part in line:
                if isinstance(part, ProgressBar) and part.width is None:
                    part.width = min(_SHORTEST + room, _LONGEST)
            yield _Line([(part, self._size(part)) for part in line])

    def _size(self, part: RenderableType) -> int:
        if isinstance(part, Text):
            return part.cell_len
        if isinstance(part, ProgressBar):
            return part.width or _SHORTEST
        return Measurement.get(self.console, self.console.options, part).maximum


class _Line:
    """Parts beside one another, each of a given width; a table would do the same in a multiple of the time."""

    def __init__(self, parts: list[tuple[RenderableType, int]]) -> None:
        self.parts = parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, (part, wide) in enumerate(self.parts):
            yield Segment(" " if number else "")
            shown = [one for one in console.render(part, options.update(width=wide)) if one.text != "\n"]
            yield from Segment.adjust_line_length(shown, wide)  # without colours a bar is as long as what is done
        yield Segment.line()


def _shortened(text: str, width: int) -> str:
    """Return ``name=value`` no wider than a line; a name that is too long loses its middle, the number nothing."""
    if cell_len(text) <= width:
        return text
    name, _, value = text.rpartition("=")
    while name and cell_len(f"{name}…={value}") > width:
        name = name[: len(name) // 2] + name[len(name) // 2 + 1 :]
    return f"{name[: len(name) // 2]}…{name[len(name) // 2 :]}={value}"


class RichDisplay:
    """Display of bars that stay at the bottom while text scrolls above.

    Args:
        columns: What a bar consists of; each sees the view's words as ``task.fields``.
        theme: Styles and formats.
        leave: What a finished epoch leaves: its bar, nothing, or a line if None.
        console_kwargs: Arguments of ``rich.console.Console``.
    """

    interval = 0.1

    def __init__(
        self,
        columns: list[ProgressColumn],
        theme: RichProgressBarTheme,
        leave: bool | None,
        console_kwargs: dict[str, Any],
    ) -> None:
        self._columns = columns
        self._theme = theme
        self._leave = leave
        self._console = Console(**console_kwargs)
        self._progress: Progress | None = None
        self._tasks: list[TaskID] = []

    def show(self, view: View) -> None:
        """Draw a view now; nothing is drawn between, so no thread is needed."""
        self._draw(view, view.times)

    def _draw(self, view: View, times: str) -> None:
        progress = self._progress
        if progress is None:
            progress = self._progress = _Bars(*self._columns, console=self._console, auto_refresh=False)
            progress.start()
        views = [view] if view.inner is None else [view, view.inner]
        while len(self._tasks) > len(views):
            progress.remove_task(self._tasks.pop())
        titles, counts = (max(len(getattr(each, of)) for each in views) for of in ("title", "counts"))
        for index, each in enumerate(views):
            title, number = each.title.ljust(titles), self._theme.metrics_format
            fields: dict[str, Any] = {"counts": each.counts.rjust(counts), "speed": each.speed}
            fields["times"] = times if index == 0 else each.times
            fields["texts"] = metrics_texts(each.metrics, number)
            fields["metrics"] = metrics_text(each.metrics, number, self._theme.metrics_text_delimiter)
            if index == len(self._tasks):
                self._tasks.append(progress.add_task(title, total=each.total, completed=each.done, **fields))
            else:
                # update() keeps a total for None, so an unknown one is set by hand.
                progress.tasks[index].total = each.total
                progress.update(self._tasks[index], description=title, completed=each.done, **fields)
        progress.refresh()

    def finish(self, view: View) -> None:
        """Draw the loop's last view, or write its line."""
        if self._leave is None:
            if self._progress is not None:
                self._progress.live.transient = True
            self.close()
            self._write_ended(view)
            return
        self._draw(view, view.took)
        if self._leave:
            self.close()

    def _write_ended(self, view: View) -> None:
        """Write the line of a loop that is over; metrics that do not fit go on below."""
        width = self._console.width
        texts = [_shortened(text, width - 2) for text in metrics_texts(view.kept, self._theme.metrics_format)]
        self.write(ended_text(view, texts, width, _LINES, cell_len))

    def write(self, text: str) -> None:
        """Write text above the bars."""
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the bars as they are and show the cursor again."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = None
        self._tasks = []
