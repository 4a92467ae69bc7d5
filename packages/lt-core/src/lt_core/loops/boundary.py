"""What is due after a batch or an epoch, and when: log, validate, step plateau schedulers, save, stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from lt_core.checkpoint.save import flush_saves
from lt_core.loops.evaluate import evaluate
from lt_core.loops.schedule import step_epoch, step_plateau
from lt_core.metrics import objects
from lt_core.metrics.store import FORBIDDEN, TRAIN_EPOCH_END, TRAIN_STEP
from lt_core.notices import warn
from lt_core.state.agreement import from_rank_zero, settle, stop_is_settled
from lt_core.state.alike import check_drift
from lt_core.state.limits import may_stop, stops_epoch
from lt_core.state.signals import raise_signal
from lt_core.state.stage import VALIDATE
from lt_interface.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["Cadence", "close_window", "end_epoch", "finish_due", "log_step", "run_due", "validation_batches"]

_NEVER = 1 << 62


def validation_batches(
    interval: int | float | timedelta,
    num_batches: int | float,
    every_n_epoch: int | None,
    longest: int | float,
) -> int | float:
    """Return after how many batches validation is due; inf for the end of an epoch of unknown length.

    Args:
        interval: What ``val_check_interval`` is.
        num_batches: Batches of an epoch, as far as its loader says.
        every_n_epoch: What ``check_val_every_n_epoch`` is.
        longest: What the interval may be at most.

    Raises:
        ConfigError: If the interval is longer than the epoch, or a fraction of an unknown length.
    """
    if isinstance(interval, timedelta):
        return math.inf
    if isinstance(interval, int):
        if every_n_epoch is not None and interval > longest:
            raise ConfigError(
                Problem(
                    f"Trainer(val_check_interval={interval})",
                    f"this must be at most the {longest} training batches of an epoch",
                    fix="To count batches across epochs, set check_val_every_n_epoch=None.",
                )
            )
        return interval
    if num_batches == math.inf:
        if interval == 1.0:
            return math.inf
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
        val_seconds: After how many seconds validation is due, where it goes by a clock.
        at_end: Whether validation is due at the epoch's end, wherever its data ends.
        logs_last: Whether an epoch's last step is logged if no other one of it was.
    """

    def __init__(self) -> None:
        self.next = 0
        self.validates = False
        self.val_seconds: float | None = None

    def begin_epoch(self, run: Run) -> None:
        """Read, once an epoch, how often something is due; the train feed must stand."""
        trainer = run.trainer
        self.run = run
        feed = run.feed
        self.total, self.accumulate = feed.num_batches, run.accumulate
        self.log_every = trainer.log_every_n_steps
        self.logs_last = "log_every_n_steps" not in trainer._config.explicit
        every = trainer.check_val_every_n_epoch
        self.across = every is None
        self.validates = trainer.enable_validation and (every is None or (run.progress.epoch + 1) % every == 0)
        interval = trainer.val_check_interval
        self.val_seconds = interval.total_seconds() if isinstance(interval, timedelta) else None
        # Only a size that is known, and before any was trained, can make an interval a mistake: later ones may differ.
        longest = self.total if feed.exact and not run.progress.batches else math.inf
        self.val_batches = validation_batches(interval, self.total, every, longest)
        if isinstance(interval, float) and interval == 1.0 and not self.across:
            self.val_batches = math.inf
        # What the last batch would have brought, had the data ended where its loader says, its true last one brings.
        whole = self.val_batches == math.inf or (not self.across and self.total % self.val_batches == 0)
        self.at_end = self.validates and whole and self.val_seconds is None
        self._warn_short(run)
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
        due = self._said_end(done)
        if self.log_every:
            due = min(due, self._after_steps(done, self.log_every - step % self.log_every))
        if run.trainer.max_steps > 0:
            due = min(due, self._after_steps(done, max(run.trainer.max_steps - step, 1)))
        if run.loop.collecting is not None:
            due = min(due, self._after_steps(done, run.loop.collecting.steps_left(step)))
        if self.validates and self.val_batches != math.inf:
            before = run.progress.batches if self.across else 0
            every = int(self.val_batches)
            opened = done - done % self.accumulate  # what was due since then waits for the open window's end
            at = opened + every - (before + opened) % every
            due = min(due, -(-at // self.accumulate) * self.accumulate)
        return int(due) if due < _NEVER else _NEVER

    def _after_steps(self, done: int, steps: int) -> float:
        """Return the batch count at which ``steps`` more optimizer steps can have happened at the soonest."""
        return min((done // self.accumulate + steps) * self.accumulate, self._said_end(done))

    def _said_end(self, done: int) -> float:
        """Return how many batches the epoch has as far as its loader says; inf where it has given more already."""
        return self.total if self.total > done else math.inf

    def validation_due(self, index: int, last: bool) -> bool:
        """Return whether validation runs after batch ``index``, which closes the window in which it was due.

        A stop validates first, unless this batch was validated already.
        """
        run = self.run
        if not self.validates or run.loop.fit.validated_batch == index + 1:
            return False
        if (stop_is_settled(run) and may_stop(run.trainer)) or (last and self.at_end):
            return True
        if self.val_seconds is not None:
            return from_rank_zero(run.trainer, time.monotonic() - run.loop.fit.validated_at >= self.val_seconds)
        if self.val_batches == math.inf:
            return False
        before = run.progress.batches if self.across else 0
        opened = index - index % self.accumulate
        return bool((before + index + 1) // self.val_batches > (before + opened) // self.val_batches)

    def _warn_short(self, run: Run) -> None:
        """Warn of validation that is due more often than a window closes."""
        every = self.val_batches
        if self.validates and every < self.accumulate and run.loop.first_time("val_check_interval"):
            warn(
                f"Trainer(val_check_interval={run.trainer.val_check_interval}): validation due every {every} batches "
                f"runs where an accumulation window of {self.accumulate} ends. Make it a multiple of that."
            )


def run_due(run: Run, index: int) -> bool:
    """Do what is due after batch ``index``; return whether to leave the epoch."""
    run.loop.attention = False
    settle(run)
    if not run.window_open(index):
        last = run.is_last_batch(index)
        log_step(run, last)
        if last:
            step_epoch(run)
    run.loop.fit.pending = "validation"
    return finish_due(run, index)


def log_step(run: Run, last: bool) -> None:
    """Log the values of the step that was made last, if they are due and were not logged yet.

    Args:
        run: The run.
        last: Whether no other step of the epoch follows.
    """
    trainer, fit, step = run.trainer, run.loop.fit, run.progress.step
    every = trainer.log_every_n_steps
    stops = trainer.should_stop and may_stop(trainer)
    only = last and run.cadence.logs_last and fit.logged_step <= fit.first_step
    if every and (only or (step != fit.logged_step and (step % every == 0 or stops))):
        fit.logged_step = step
        run.log(run.metrics.train.take_step(), "train")


def finish_due(run: Run, index: int) -> bool:
    """Do the part of what is due that begins with validation; a run stopped in or before it resumes here.

    In an open accumulation window all of it waits for the window's end.
    """
    trainer, progress, cadence, fit = run.trainer, run.progress, run.cadence, run.loop.fit
    if run.window_open(index):
        run.loop.at_boundary, fit.pending = False, None
        cadence.next = cadence.after(progress.batch)
        run.loop.attention = run.loop.attention or bool(run.saves.queue) or trainer.should_stop or _signalled(run)
        return False
    run.loop.at_boundary = True
    if _signalled(run):
        flush_saves(run)
        raise_signal(run)
    again = fit.pending == "validating" and cadence.validates  # as the checkpoint says that this run was resumed from
    if again or (fit.pending != "validated" and cadence.validation_due(index, run.is_last_batch(index))):
        _validate(run)
    fit.pending = None
    if not fit.skipped:
        step_plateau(run, "step", progress.step)
    fit.settled = progress.batch
    flush_saves(run)
    if run.loop.collecting is not None:
        run.loop.collecting.collect(progress.step)
    raise_signal(run)
    cadence.next = cadence.after(progress.batch)
    if trainer.should_stop and not may_stop(trainer):
        run.loop.attention = True
    return stops_epoch(trainer)


def _validate(run: Run) -> None:
    fit = run.loop.fit
    fit.validated_at = time.monotonic()
    run.hooks.fire("on_validation_model_zero_grad")
    fit.validated_batch = run.progress.batch
    evaluate(run, VALIDATE)
    settle(run)


def close_window(run: Run, schedule: Callable[[int], None] | None) -> None:
    """Step with the window that a refused batch left open, and validate if that was due inside it.

    Saves wait for the epoch's end: until then the data stands behind the refused batch.

    Args:
        run: The run.
        schedule: What the loop calls after each step.
    """
    fit, done = run.loop.fit, run.progress.batch
    if not done % run.accumulate or fit.close is None:
        return
    run.metrics.train.scope = TRAIN_STEP
    fit.close(done - 1)
    if schedule is not None:
        schedule(done - 1)
    run.metrics.train.scope = FORBIDDEN
    log_step(run, True)
    if run.cadence.validation_due(done - 1, False):
        _validate(run)
        fit.before_validation = None
    if not fit.skipped:
        step_plateau(run, "step", run.progress.step)


def _signalled(run: Run) -> bool:
    return run.signals is not None and run.signals.heeded is not None


def end_epoch(run: Run, over: bool) -> None:
    """Run what belongs to an epoch's end: its hooks, plateau schedulers, metrics, counters and saves.

    Args:
        run: The run.
        over: Whether its data has ended. Else a stop leaves the epoch open: hooks and loggers get its values so far,
            and a later fit or resume goes on with its next batch, and with its values.
    """
    progress, store, fit = run.progress, run.metrics.train, run.loop.fit
    run.loop.at_boundary = False
    store.batch = None
    check_drift(run)
    log_step(run, True)
    fit.left = -1 if over else progress.batch
    fit.kept = None if over else {"metrics": run.metrics.state_dict(), "objects": objects.collect(run.module)}
    store.scope = TRAIN_EPOCH_END
    store.sync()  # before the hooks: each rank's callbacks see the same values
    if fit.pending != "closing":  # called before the checkpoint that this run was resumed from
        run.hooks.fire("on_train_epoch_end")
    if over:
        step_plateau(run, "epoch", progress.epoch + 1)
    run.metrics.results.read_callback(store)
    run.metrics.results.read_bar(store)
    run.log(store.take_epoch(), "train", of="epoch")
    store.scope = FORBIDDEN
    run.count_samples()
    if over:
        _close(run)
    store.reset()
    run.loop.at_boundary = True
    fit.pending = None
    settle(run)
    flush_saves(run)
    raise_signal(run)


def _close(run: Run) -> None:
    """Count an epoch whose data has ended."""
    progress = run.progress
    run.feed.close_epoch()
    progress.batches += progress.batch
    progress.epoch += 1
    progress.batch = 0
    progress.epoch_closed = True
    _warn_uncounted(run)


def _warn_uncounted(run: Run) -> None:
    """Warn of an epoch of manual optimization without a counted step, where max_steps is to end the fit."""
    trainer, progress = run.trainer, run.progress
    by_hand = run.optimizers and not run.module.automatic_optimization and trainer.max_steps != -1
    if by_hand and progress.batches and not progress.step and run.loop.first_time("uncounted"):
        warn(
            f"{type(run.module).__name__}.training_step: no optimizer of self.optimizers() was stepped in this epoch, "
            f"so max_steps={trainer.max_steps} is not reached. Step what self.optimizers() returns, not the optimizer "
            "itself."
        )
