"""Hold what a progress display shows at one moment, and its words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lt_core.callbacks.progress.forecast import duration_text

__all__ = ["Display", "View", "metrics_text"]


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
        """Return what is left, of the loop and of the run."""
        parts = [] if self.left is None else [f"{duration_text(self.left)} left"]
        if self.run_left is not None:
            parts.append(f"run {duration_text(self.run_left)} left")
        return ", ".join(parts)


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


def metrics_text(metrics: Mapping[str, Any], number: str = ".3f", delimiter: str = " ") -> str:
    """Return ``name=value`` of each metric; a number that the format would show as zero gets an exponent."""
    return delimiter.join(f"{name}={_value_text(value, number)}" for name, value in metrics.items())


def _value_text(value: Any, number: str) -> str:
    if not isinstance(value, float):
        return str(value)
    text = format(value, number)
    return f"{value:.2e}" if value and text.strip("-0.") == "" else text
