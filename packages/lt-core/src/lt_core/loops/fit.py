"""Train: the loop over epochs and the loop over batches."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lt_core.data.sources import train_feed
from lt_core.loops.boundary import close_epoch, finish_due, log_step, run_due
from lt_core.loops.cadence import Cadence
from lt_core.loops.evaluate import evaluate, sanity_check
from lt_core.loops.schedule import after_step, step_epoch
from lt_core.loops.step import build_step
from lt_core.metrics.store import FORBIDDEN, SILENT, TRAIN_BATCH_END, TRAIN_BATCH_START, TRAIN_STEP
from lt_core.state.signals import raise_signal
from lt_core.state.stage import VALIDATE

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["run_fit"]


def run_fit(run: Run) -> None:
    """Train until something says stop.

    In pseudo-code::

        sanity check
        on_train_start
        until max_steps, max_epochs or a stop:
            on_train_epoch_start
            for each batch:
                on_train_batch_start
                step: training_step, zero_grad, backward, clip, optimizer step
                on_train_batch_end
                if anything is due: log, validate, plateau schedulers, save, stop
            on_train_epoch_end, log, save
        on_train_end
    """
    from lt_core.checkpoint.resume import restore_data
    from lt_core.checkpoint.save import flush_saves
    from lt_core.state import rng

    trainer = run.trainer
    sanity_check(run)
    if not trainer._fit_done:
        train_feed(run)  # so that on_train_start finds the loader and its length
    run.hooks.fire("on_train_start")
    run.val_clock = time.monotonic()
    if run.loaded is not None:
        restore_data(run, run.loaded)
        if run.loaded.get("rng") is not None:
            rng.restore(run.loaded["rng"])
        run.loaded = None
    if trainer.validate_at_start and run.progress.step == 0 and trainer.enable_validation:
        evaluate(run, VALIDATE)
    while not trainer._fit_done:
        run_epoch(run)
    run.hooks.fire("on_train_end")
    flush_saves(run)
    raise_signal(run)


def open_epoch(run: Run) -> None:
    """Begin an epoch: counters, metrics and the epoch's first hook."""
    progress = run.progress
    progress.epoch_closed, progress.batch = False, 0
    run.validated_batch = -1
    run.samples_seen = 0
    run.epoch_schedulers_done = False
    run.at_boundary = False
    run.hooks.fire("on_train_epoch_start")


def refresh(run: Run) -> None:
    """Rebuild hooks, step and cadence if anything that users may change did change."""
    trainer = run.trainer
    seen = trainer._changeable()
    if seen != run.config_seen:
        trainer._adopt_changes(run)
        run.config_seen = trainer._changeable()
        run.step = build_step(run)
    run.cadence = Cadence(run)


def run_epoch(run: Run) -> None:
    """Run one epoch, or the rest of one that was resumed."""
    progress, trainer = run.progress, run.trainer
    feed = train_feed(run)
    resumed = not progress.epoch_closed
    if not resumed:
        refresh(run)  # so that on_train_epoch_start sees callbacks added since the last epoch
        open_epoch(run)
    refresh(run)
    hooks, store, step, cadence, place = run.hooks, run.train_metrics, run.step, run.cadence, run.place
    batch_start, batch_end = hooks.on_train_batch_start, hooks.on_train_batch_end  # type: ignore[attr-defined]
    module_start = hooks.module_train_batch_start
    schedule = after_step(run)
    in_start, in_step, in_end, outside = (
        (SILENT,) * 4 if trainer.barebones else (TRAIN_BATCH_START, TRAIN_STEP, TRAIN_BATCH_END, FORBIDDEN)
    )
    if resumed and ((run.pending is not None and finish_due(run, progress.batch - 1)) or trainer._leave_epoch):
        return close_epoch(run)
    skipped = stopped = False
    batches = feed.resume(progress.epoch) if resumed else feed.epoch(progress.epoch)
    run.samples_seen = sum(leaf.samples for leaf in feed.leaves)
    for i, batch in enumerate(batches, progress.batch):
        if place is not None:
            batch = place(batch, 0)
        run.at_boundary = False
        store.batch, store.size = batch, None
        store.scope = in_start
        for f in batch_start:
            f(batch, i)
        if module_start is not None and module_start(batch, i) == -1:
            skipped = True
            break
        store.scope = in_step
        output = step(batch, i)
        if schedule is not None:
            schedule(i)
        store.scope = in_end
        for f in batch_end:
            f(output, batch, i)
        progress.batch = i + 1
        if i + 1 >= cadence.next or run.attention:
            store.scope, store.hook = outside, "the loop"
            stopped = run_due(run, i)
            if stopped:
                break
    store.scope, store.batch = outside, None
    del batches
    if not stopped and progress.batch < feed.num_batches:
        stopped = end_of_data(run, skipped)
    close_epoch(run)
    return None


def end_of_data(run: Run, skipped: bool) -> bool:
    """Do what the last batch of an epoch would have done, had its loader said that it is the last."""
    step_epoch(run)
    log_step(run)  # a short window's step came before its batch was due
    progress, cadence = run.progress, run.cadence
    at_end = cadence.validates and cadence.val_batches == float("inf") and cadence.val_seconds is None
    if skipped or not at_end or not progress.batch or run.validated_batch == progress.batch:
        return False
    return finish_due(run, progress.batch - 1)
