"""Do what is due after a batch or an epoch: log, validate, step plateau schedulers, save, stop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lt_core.checkpoint.parts import validation_place
from lt_core.checkpoint.save import flush_saves
from lt_core.loops.evaluate import evaluate
from lt_core.loops.schedule import step_plateau
from lt_core.metrics.store import FORBIDDEN, TRAIN_EPOCH_END
from lt_core.state.limits import may_stop, stops_epoch
from lt_core.state.signals import raise_signal
from lt_core.state.stage import VALIDATE

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["close_epoch", "finish_due", "log_step", "run_due"]


def run_due(run: Run, index: int) -> bool:
    """Do what is due after batch ``index``; return whether to leave the epoch."""
    run.loop.attention = False
    if not run.window_open(index):
        log_step(run)
    run.loop.fit.pending = "validation"
    return finish_due(run, index)


def log_step(run: Run) -> None:
    """Log the values of the step that was made last, if they are due and were not logged yet."""
    trainer, step = run.trainer, run.progress.step
    every = trainer.log_every_n_steps
    stops = trainer.should_stop and may_stop(trainer)
    if step != run.loop.fit.logged_step and every and (step % every == 0 or stops):
        run.loop.fit.logged_step = step
        run.log(run.metrics.train.take_step(), "train")


def finish_due(run: Run, index: int) -> bool:
    """Do the part of what is due that begins with validation; a run stopped inside it resumes here."""
    trainer, progress, cadence = run.trainer, run.progress, run.cadence
    opened = run.window_open(index)
    run.loop.at_boundary = not opened
    stopping = trainer.should_stop and may_stop(trainer)
    if cadence.validation_due(index, run.is_last_batch(index)) and not (stopping and opened):
        run.loop.fit.validated_at = time.monotonic()
        if not opened:
            run.hooks.fire("on_validation_model_zero_grad")
        run.loop.fit.validated_batch = progress.batch
        run.loop.fit.before_validation = validation_place(run)
        evaluate(run, VALIDATE)
    run.loop.fit.pending = run.loop.fit.before_validation = None
    if not opened:
        step_plateau(run, "step", progress.batch)
        flush_saves(run)
        raise_signal(run)
    cadence.next = cadence.after(progress.batch)
    if opened:  # whatever asked for attention waits for the window's end
        run.loop.attention = run.loop.attention or bool(run.saves.queue) or trainer.should_stop or _signalled(run)
        return False
    if trainer.should_stop and not may_stop(trainer):
        run.loop.attention = True
    return stops_epoch(trainer)


def _signalled(run: Run) -> bool:
    return run.signals is not None and run.signals.received is not None


def close_epoch(run: Run) -> None:
    """End an epoch: its hooks, plateau schedulers, metrics, counters and saves."""
    progress, store = run.progress, run.metrics.train
    run.loop.at_boundary = False
    store.batch = None
    store.scope = TRAIN_EPOCH_END
    store.sync()  # before the hooks: each rank's callbacks see the same values
    run.hooks.fire("on_train_epoch_end")
    step_plateau(run, "epoch", progress.epoch + 1)
    run.metrics.results.read_callback(store)
    run.metrics.results.read_bar(store)
    run.log(store.take_epoch(), "train", of="epoch")
    store.scope = FORBIDDEN
    run.count_samples()
    run.feed.close_epoch()
    progress.batches += progress.batch
    progress.epoch += 1
    progress.batch = 0
    progress.epoch_closed = True
    store.reset()
    run.loop.at_boundary = True
    run.loop.fit.pending = None
    flush_saves(run)
    raise_signal(run)
