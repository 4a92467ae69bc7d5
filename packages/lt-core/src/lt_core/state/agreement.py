"""Let all ranks decide alike: by what rank 0 saw, what any rank saw, or rank 0's clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from lt_core.trainer import Trainer

__all__ = ["SharedAlarm", "from_rank_zero", "on_any_rank"]

T = TypeVar("T")


def from_rank_zero(trainer: Trainer, value: T) -> T:
    """Return rank 0's value on every rank."""
    return trainer.collectives.broadcast_object(value)


def on_any_rank(trainer: Trainer, flag: bool) -> bool:
    """Return on every rank whether the flag is set on any."""
    return trainer.collectives.any(flag)


class SharedAlarm:
    """Alarm that rings on every rank at the same batch, by rank 0's clock.

    With several ranks an exchange at every batch would cost more than the batch. So rank 0
    sends with each answer how many batches may pass before the next question: about a
    second's worth, and never past the time it rings at.

    Args:
        seconds_left: Returns how many seconds are left, on this rank's clock.
        clock: Returns seconds; for tests.
    """

    def __init__(self, seconds_left: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds_left = seconds_left
        self._clock = clock
        self._skip = 0
        self._asked = 0
        self._since = clock()

    def reset(self) -> None:
        """Ask again at the next call; every rank must reset at the same place."""
        self._skip = 0

    def rings(self, trainer: Trainer) -> bool:
        """Return whether the time is up; call it once a batch on every rank."""
        if trainer.world_size == 1:
            return self._seconds_left() <= 0
        self._asked += 1
        if self._skip > 0:
            self._skip -= 1
            return False
        left, self._skip = from_rank_zero(trainer, (self._seconds_left(), self._batches_to_skip()))
        return left <= 0

    def _batches_to_skip(self) -> int:
        now = self._clock()
        batch_seconds = max((now - self._since) / max(self._asked, 1), 1e-6)
        self._since, self._asked = now, 0
        return max(int(min(1.0, max(self._seconds_left(), 0.0)) / batch_seconds) - 1, 0)
