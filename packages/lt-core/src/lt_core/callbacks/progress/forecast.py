"""Estimate how long what is left will take. Pure arithmetic on counts and seconds."""

from __future__ import annotations

import math

__all__ = ["Forecast", "Pace", "batches_left", "duration_text", "taken_text"]


class Pace:
    """Average seconds a unit, the recent ones weighing more.

    Args:
        memory: After so many seconds of work an observation weighs 1/e of its first weight.
    """

    def __init__(self, memory: float = 30.0) -> None:
        self._memory = memory
        self._seconds = 0.0
        self._units = 0.0

    def add(self, units: int, seconds: float) -> None:
        """Learn that ``units`` took ``seconds``."""
        if units <= 0 or seconds < 0:
            return
        keep = math.exp(-seconds / self._memory)
        self._seconds = self._seconds * keep + seconds
        self._units = self._units * keep + units

    @property
    def seconds(self) -> float | None:
        """Return the seconds that a unit takes; None while nothing is known."""
        return self._seconds / self._units if self._units else None


class Forecast:
    """Clock of a training run: batches, and what comes between them.

    Validation, saving and the change of epochs are overhead. The run's estimate spreads the
    overhead so far over the batches after which it came.
    """

    def __init__(self, now: float, done: int = 0) -> None:
        self.pace = Pace()
        self._last = now
        self._done = done
        self._batches = 0
        self._overhead = 0.0
        self._overhead_batches = 0
        self._away: float | None = None

    @property
    def is_running(self) -> bool:
        """Return whether batches run, and nothing between them."""
        return self._away is None

    def batches(self, done: int, now: float) -> None:
        """Learn that ``done`` batches of this epoch are done."""
        self.back(now)
        self.pace.add(done - self._done, now - self._last)
        self._batches += max(done - self._done, 0)
        self._done, self._last = done, now

    def away(self, done: int, now: float) -> None:
        """Learn that something else than batches begins."""
        if self._away is None:
            self.batches(done, now)
            self._away = now

    def back(self, now: float) -> None:
        """Learn that batches go on."""
        if self._away is not None:
            self._overhead += now - self._away
            self._overhead_batches = self._batches
            self._away = None
            self._last = now

    def new_epoch(self, now: float) -> None:
        """Learn that an epoch begins."""
        self.back(now)
        self._done, self._last = 0, now

    def epoch_left(self, left: float) -> float | None:
        """Return the seconds that ``left`` batches take; None if unknown."""
        seconds = self.pace.seconds
        return None if seconds is None or not math.isfinite(left) else max(left, 0) * seconds

    def run_left(self, left: float) -> float | None:
        """Return the seconds that ``left`` batches take with all that comes between."""
        plain = self.epoch_left(left)
        if plain is None or not self._overhead_batches:
            return plain
        return plain + max(left, 0) * self._overhead / self._overhead_batches


def batches_left(
    *, done: int, per_epoch: float, epoch: int, max_epochs: int | None, step: int, max_steps: int, accumulate: int
) -> float:
    """Return how many batches the run has before it; infinity if it has no end.

    Args:
        done: Batches done in the running epoch.
        per_epoch: Batches of an epoch; infinity if unknown.
        epoch: Completed epochs.
        max_epochs: The limit of epochs; None or -1 is none.
        step: Steps done.
        max_steps: The limit of steps; -1 is none.
        accumulate: Batches a step.
    """
    left = math.inf
    if max_epochs is not None and max_epochs >= 0:
        epochs = max_epochs - epoch
        left = epochs * per_epoch - done if epochs > 0 else 0.0
    if max_steps >= 0:
        left = min(left, (max_steps - step) * accumulate)
    return max(left, 0.0)


def duration_text(seconds: float | None) -> str:
    """Return seconds as ``1:05``, ``2:03:04`` or ``3d 02:03:04``; ``?`` if unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}:{minute:02d}:{second:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def taken_text(seconds: float) -> str:
    """Return seconds that are over: ``14 ms``, ``2.4 s``, and above ten as `duration_text`."""
    if seconds < 0.0995:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 9.95 else duration_text(seconds)
