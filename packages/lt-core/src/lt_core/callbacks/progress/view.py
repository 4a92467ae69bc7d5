"""Hold what a progress display shows at one moment, and its words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lt_core.callbacks.progress.forecast import duration_text, taken_text

__all__ = ["Display", "View", "ended_text", "metrics_text", "metrics_texts", "packed", "value_text"]


@dataclass(frozen=True)
class View:
    """One loop at one moment, as a display shows it.

    Attributes:
        title: What runs, such as ``Epoch 2/9``.
        done: Batches done.
        total: Batches of the loop; None if unknown.
        elapsed: Seconds since the loop began.
        pace: Seconds a batch; None if unknown.
        left: Seconds until this loop is over; None if unknown.
        run_left: Seconds until the whole run is over; None if unknown or not a training loop.
        metrics: What is shown beside the counts.
        inner: The loop that runs inside this one, such as validation.
    """

    title: str
    done: int
    total: int | None
    elapsed: float = 0.0
    pace: float | None = None
    left: float | None = None
    run_left: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    inner: View | None = None

    @property
    def counts(self) -> str:
        """Return ``3/10``, or ``3`` if the total is unknown."""
        return f"{self.done}" if self.total is None else f"{self.done}/{self.total}"

    @property
    def speed(self) -> str:
        """Return batches a second, or seconds a batch where it takes longer than one."""
        if not self.pace:
            return ""
        return f"{1 / self.pace:.1f} it/s" if self.pace < 1 else f"{self.pace:.1f} s/it"

    @property
    def times(self) -> str:
        """Return what passed and what is left, of the loop and of the run; nothing of what is over in a moment."""
        left = {"": self.left, "run ": self.run_left}
        known = [f"{of}{duration_text(s)} left" for of, s in left.items() if s is not None and s > 0.5]
        return ", ".join([f"{duration_text(self.elapsed)} elapsed", *known])

    @property
    def took(self) -> str:
        """Return how long a loop that is over took."""
        return f"in {taken_text(self.elapsed)}"

    @property
    def kept(self) -> dict[str, Any]:
        """Return the metrics of a loop that is over: an epoch's value stands for its last step's."""
        names = self.metrics.keys()
        return {
            name: value
            for name, value in self.metrics.items()
            if name != "v_num" and not (name.endswith("_step") and f"{name[:-5]}_epoch" in names)
        }


class Display(Protocol):
    """Place that views are drawn at."""

    interval: float

    def show(self, view: View) -> None:
        """Draw a view."""
        ...

    def finish(self, view: View) -> None:
        """Draw the last view of a loop."""
        ...

    def write(self, text: str) -> None:
        """Write a line beside what is drawn."""
        ...

    def close(self) -> None:
        """Leave the screen as text that comes later needs it."""
        ...


def metrics_texts(metrics: Mapping[str, Any], number: str = ".3f") -> list[str]:
    """Return ``name=value`` of each metric; a number that the format would show as zero gets an exponent."""
    return [f"{name}={value_text(value, number)}" for name, value in metrics.items()]


def packed(parts: Iterable[tuple[Any, int]], width: int, most: int) -> tuple[list[list[Any]], int]:
    """Return parts in lines, none of them broken and a blank between two, and how many were left out.

    Args:
        parts: Each part and its width.
        width: The width of a line.
        most: How many lines there are; if parts are left out, the last one has room for ``+9 more``.
    """
    lines: list[list[tuple[Any, int]]] = [[]]
    for part in parts:
        if lines[-1] and _wide(lines[-1]) + part[1] > width:
            lines.append([])
        lines[-1].append(part)
    left = sum(map(len, lines[most:]))
    while left and lines[most - 1] and _wide(lines[most - 1]) + len(f"+{left} more") > width:
        lines[most - 1].pop()
        left += 1
    return [[part for part, _ in line] for line in lines[:most]], left


def ended_text(view: View, texts: Iterable[str], width: int, most: int, size: Callable[[str], int] = len) -> str:
    """Return the line of a loop that is over; metrics that do not fit go on below.

    Args:
        view: The loop's last view.
        texts: Its metrics.
        width: The screen's width.
        most: How many lines there are.
        size: Returns the width of a text.
    """
    texts = list(texts)
    head = f"{view.title}: {view.counts} batches {view.took}{',' if texts else ''}"
    lines, left = packed([(text, size(text)) for text in [head, *texts]], width - 2, most)
    if left:
        lines[-1].append(f"+{left} more")
    return "\n  ".join(" ".join(line) for line in lines)


def _wide(line: Iterable[tuple[Any, int]]) -> int:
    return sum(wide + 1 for _, wide in line)


def metrics_text(metrics: Mapping[str, Any], number: str = ".3f", delimiter: str = " ") -> str:
    """Return all metrics as one text."""
    return delimiter.join(metrics_texts(metrics, number))


def value_text(value: Any, number: str) -> str:
    """Return a metric's value as it is shown."""
    if not isinstance(value, float):
        return str(value)
    text = format(value, number)
    return f"{value:.2e}" if value and text.strip("-0.") == "" else text
