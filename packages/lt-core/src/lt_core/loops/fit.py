"""Train: the loop over epochs and the loop over batches."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from lt_core.data.sources import feed_of
from lt_core.data.stager import Stager
from lt_core.data.to_device import build_place
from lt_core.loops.boundary import close_window, end_epoch, finish_due, log_step, run_due
from lt_core.loops.evaluate import evaluate, sanity_check
from lt_core.loops.schedule import after_step, step_epoch
from lt_core.loops.step import build_step
from lt_core.metrics.store import FORBIDDEN, TRAIN_BATCH_END, TRAIN_BATCH_START, TRAIN_STEP
from lt_core.notices import warn
from lt_core.state import rng
from lt_core.state.agreement import listen, refusal, settle
from lt_core.state.alike import check_alike
from lt_core.state.collecting import Collecting
from lt_core.state.limits import fit_is_over, stop_reason, stops_epoch
from lt_core.state.signals import raise_signal
from lt_core.state.stage import TRAIN, VALIDATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lt_core.state.run import Run
    from lt_core.trainer import Trainer

__all__ = ["run_fit"]


def run_fit(run: Run, rebuild: Callable[[Run], bool]) -> None:
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
            on_train_epoch_end, log, save; where a stop came first, the epoch stays open
        on_train_end

    Args:
        run: The run.
        rebuild: Brings the run in line with what users changed; returns whether anything did.
    """
    from lt_core.checkpoint.parts import restore
    from lt_core.checkpoint.preflight import check_data
    from lt_core.checkpoint.save import flush_saves, settle_saves

    trainer = run.trainer
    if trainer.enable_validation:  # before any batch: what is wrong with the validation data shows at once
        with rng.isolate(trainer.accelerator, run.device):
            feed_of(run, VALIDATE)
    check_alike(run, VALIDATE.loader, "validations", int(trainer.enable_validation))
    sanity_check(run)
    if not fit_is_over(trainer):
        feed_of(run, TRAIN)  # so that on_train_start finds the loader and its length
        check_data(run)
    elif run.progress.step and run.resumed.path is None:
        warn(_over(trainer))
    if trainer.gc_every_n_steps is not None:
        run.loop.collecting = Collecting(trainer.gc_every_n_steps)
    run.hooks.fire("on_train_start")
    run.loop.fit.validated_at = time.monotonic()
    if run.resumed.tree is not None:
        restore(run, run.resumed.tree, "data", "random")
        run.resumed.tree = None
    elif not run.progress.epoch_closed:
        _take_up(run)
    if trainer.validate_at_start and run.progress.step == 0 and trainer.enable_validation:
        evaluate(run, VALIDATE)
    settle(run)
    epoch = run.action(run_epoch, "run_training_epoch")
    while not _is_over(run):
        try:
            epoch(run, rebuild)
        finally:
            run.loop.fit.pace.end()
    settle_saves(run)  # so that on_train_end finds the best file of all
    run.hooks.fire("on_train_end")
    settle(run)
    flush_saves(run)
    raise_signal(run)


def _over(trainer: Trainer) -> str:
    """Return what to do about a trainer that is asked to train on and may not."""
    limit = stop_reason(trainer)
    if limit not in ("max_epochs", "max_steps"):
        return f"Trainer.fit: this trainer's time is up, so nothing is trained. Got {limit}. Make a new Trainer."
    reached = getattr(trainer, limit)
    return (
        f"Trainer.fit: this trainer has reached {limit}={reached} before, so nothing is trained. To train on, write "
        f"trainer.{limit} = {2 * reached}; to train anew, make a new Trainer."
    )


def _is_over(run: Run) -> bool:
    """Return whether no further epoch begins, for want of data too."""
    return fit_is_over(run.trainer) or (run.progress.epoch_closed and not feed_of(run, TRAIN).limit)


def _take_up(run: Run) -> None:
    """Go on in the epoch that an earlier fit of the trainer left open; where the data is another one, begin anew."""
    from lt_core.checkpoint.parts import restore

    rest, run.saves.kept = run.saves.kept, {}
    ranks = rest.get("ranks") or [rest]
    state = ranks[run.world.rank]["data"][TRAIN.word]
    feed = feed_of(run, TRAIN)
    if feed.matches(state):
        feed.load_state_dict(state)
        restore(run, rest, "training")
    else:
        run.progress.abandon_epoch()


def open_epoch(run: Run) -> None:
    """Begin an epoch: counters, metrics and the epoch's first hook."""
    progress = run.progress
    progress.epoch_closed, progress.batch = False, 0
    run.loop.fit.begin_epoch(progress.step)
    run.loop.at_boundary = False
    run.hooks.fire("on_train_epoch_start")


def begin_batches(run: Run, resumed: bool) -> Iterator[Any]:
    """Return the epoch's batches, or the rest of them; the batch is counted anew where batches or ranks are others."""
    feed, progress = run.feed, run.progress
    placed = feed.waits
    batches = feed.resume(progress.epoch) if resumed and placed else feed.epoch(progress.epoch)
    if resumed and not placed:  # the file is of another program
        warn(
            f"{run.resumed.path or 'checkpoint'}: it does not say where training stood in the data. Epoch "
            f"{progress.epoch} goes on behind the first {progress.batch} batches of a new pass."
        )
        next(islice(batches, progress.batch, progress.batch), None)
    if feed.moved is not None:
        progress.batch = feed.moved
    if feed.moved is not None or feed.num_batches != run.cadence.total:  # found when the ranks met
        run.cadence.begin_epoch(run)
    run.loop.fit.samples_seen = feed.samples
    return batches


def _begin_epoch(run: Run, rebuild: Callable[[Run], bool], resumed: bool) -> Callable[[Any, int], Any] | None:
    """Build what an epoch needs and begin it; return what brings each batch to the device, if the loop is to."""
    loop = run.loop
    check_alike(run, TRAIN.loader, "batches", run.feed.num_batches)
    changed = rebuild(run)
    if not resumed:  # on_train_epoch_start sees callbacks added since the last epoch, and may add some
        run.cadence.begin_epoch(run)
        open_epoch(run)
        changed = rebuild(run) or changed
    run.cadence.begin_epoch(run)
    if changed or loop.fit.step is None:
        loop.fit.step = run.action(build_step(run), "run_training_batch")
    place = build_place(run, TRAIN)
    feed = run.feed  # a hook of the epoch's start may have exchanged it
    feed.stager = place if isinstance(place, Stager) and feed.early else None
    return place if feed.stager is None else None


def run_epoch(run: Run, rebuild: Callable[[Run], bool]) -> None:
    """Run one epoch, or the rest of one that was resumed."""
    progress, loop, resumed = run.progress, run.loop, not run.progress.epoch_closed
    place, feed = _begin_epoch(run, rebuild, resumed), run.feed
    hooks, store, step, cadence = run.hooks, run.metrics.train, loop.fit.step, run.cadence
    assert step is not None  # it is built
    batches = begin_batches(run, resumed)
    batch_start, batch_end = hooks.on_train_batch_start, hooks.on_train_batch_end  # type: ignore[attr-defined]
    module_start = refusal(run, hooks.module_train_batch_start)
    schedule, hear, pace, now = after_step(run), listen(run), loop.fit.pace, time.perf_counter
    stopped, skipped = resumed and stops_resumed(run), False
    pace.stager, asked = feed.stager, pace.begin()
    for i, batch in enumerate(() if stopped else run.timed_batches(batches, TRAIN), progress.batch):
        got = now()
        pace.fetching += got - asked
        if place is not None:
            batch = place(batch, 0)
            pace.moving += now() - got
        loop.at_boundary = False
        store.batch, store.size, store.scope = batch, None, TRAIN_BATCH_START
        for f in batch_start:
            f(batch, i)
        if module_start is not None and module_start(batch, i) == -1:
            skipped = True
            close_window(run, schedule)
            break
        store.scope = TRAIN_STEP
        output = step(batch, i)
        if schedule is not None:
            schedule(i)
        store.scope = TRAIN_BATCH_END
        for f in batch_end:
            f(output, batch, i)
        progress.batch = i + 1
        if hear is not None:
            hear()
        if i + 1 >= cadence.next or loop.attention:
            store.scope, store.hook = FORBIDDEN, "the loop"
            pace.end()
            stopped = run_due(run, i)
            pace.begin()
            if stopped:
                break
        asked = now()
    pace.end()
    store.scope, store.batch = FORBIDDEN, None
    del batches
    if not stopped:
        end_of_data(run, skipped)
    end_epoch(run, over=not stopped or loop.fit.pending == "closing" or run.is_last_batch(progress.batch - 1))


def stops_resumed(run: Run) -> bool:
    """Do what the resumed run was stopped before, and return whether no batch of its epoch follows."""
    pending, index = run.loop.fit.pending, run.progress.batch - 1
    if pending is None or pending == "closing":
        return pending is not None or stops_epoch(run.trainer)
    return (run_due if pending == "due" else finish_due)(run, index) or stops_epoch(run.trainer)


def end_of_data(run: Run, skipped: bool) -> None:
    """Do what the last batch of an epoch would have done, had its loader said that it is the last."""
    step_epoch(run)
    settle(run)
    log_step(run, True)  # a short window's step came before its batch was due
    progress = run.progress
    if not skipped and progress.batch and run.loop.fit.settled != progress.batch:
        run.loop.fit.pending = "validation"
        finish_due(run, progress.batch - 1)
