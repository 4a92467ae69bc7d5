"""Decide at which batches of an epoch the loop must look up: to log, validate or stop."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

from lt_core.state.limits import may_stop
from lt_interface.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["Cadence", "validation_batches"]

_NEVER = 1 << 62


def validation_batches(
    interval: int | float | timedelta, num_batches: int | float, every_n_epoch: int | None
) -> int | float:
    """Return after how many batches validation is due; inf for the end of an epoch of unknown length.

    Raises:
        ConfigError: If the interval is longer than the epoch, or a fraction of an unknown length.
    """
    if isinstance(interval, timedelta):
        return float("inf")
    if isinstance(interval, int):
        if every_n_epoch is not None and interval > num_batches:
            raise ConfigError(
                Problem(
                    f"Trainer(val_check_interval={interval})",
                    f"this must be at most the {num_batches} training batches of an epoch",
                    fix="To count batches across epochs, set check_val_every_n_epoch=None.",
                )
            )
        return interval
    if num_batches == float("inf"):
        if interval == 1.0:
            return float("inf")
        raise ConfigError(
            Problem(
                f"Trainer(val_check_interval={interval})",
                "a fraction needs a training loader whose length is known",
                fix="Give a number of batches, 1.0, or a time such as '00:00:10:00'.",
            )
        )
    return max(1, int(num_batches * interval))


class Cadence:
    """Batches of the running epoch after which something is due.

    Attributes:
        next: The count of completed batches at which the loop must next look up.
        validates: Whether this epoch validates.
    """

    def begin_epoch(self, run: Run) -> None:
        """Read, once an epoch, how often something is due; the train feed must stand."""
        trainer = run.trainer
        self.run = run
        self.total = run.feed.num_batches
        self.accumulate = run.plan.accumulate if run.module.automatic_optimization else 1
        self.log_every = trainer.log_every_n_steps
        every = trainer.check_val_every_n_epoch
        self.across = every is None
        self.validates = trainer.enable_validation and (every is None or (run.progress.epoch + 1) % every == 0)
        self.val_batches = validation_batches(trainer.val_check_interval, self.total, every)
        interval = trainer.val_check_interval
        self.val_seconds = interval.total_seconds() if isinstance(interval, timedelta) else None
        plateau = any(s.reduce_on_plateau and s.interval == "step" for s in run.schedulers)
        self.every_batch = (self.validates and self.val_seconds is not None) or (
            plateau and run.module.automatic_optimization
        )
        self.next = self.after(run.progress.batch)

    def after(self, done: int) -> int:
        """Return the count of completed batches at which the loop must next look up."""
        if self.every_batch:
            return done + 1
        run, step = self.run, self.run.progress.step
        due = self.total
        if self.log_every:
            due = min(due, self._after_steps(done, self.log_every - step % self.log_every))
        if run.trainer.max_steps > 0:
            due = min(due, self._after_steps(done, max(run.trainer.max_steps - step, 1)))
        if self.validates and self.val_batches != float("inf"):
            before = run.progress.batches if self.across else 0
            every = int(self.val_batches)
            due = min(due, done + every - (before + done) % every)
        return int(due) if due < _NEVER else _NEVER

    def _after_steps(self, done: int, steps: int) -> float:
        """Return the batch count at which ``steps`` more optimizer steps can have happened at the soonest."""
        return min((done // self.accumulate + steps) * self.accumulate, max(self.total, done + 1))

    def validation_due(self, index: int, last: bool) -> bool:
        """Return whether validation runs after batch ``index``."""
        run = self.run
        if not self.validates:
            return False
        if self.val_seconds is not None:
            due = time.monotonic() - run.loop.fit.validated_at >= self.val_seconds
            return run.collectives.broadcast_object(due)
        if self.val_batches == float("inf"):
            return last
        if run.trainer.should_stop and may_stop(run.trainer) and not self.across:
            return True
        before = run.progress.batches if self.across else 0
        return bool((before + index + 1) % self.val_batches == 0)
