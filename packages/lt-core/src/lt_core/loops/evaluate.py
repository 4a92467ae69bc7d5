"""Validate and test: one loop for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lt_core.checkpoint.parts import validation_place
from lt_core.data.sources import feed_of, has_loader, limit_of
from lt_core.hooks.table import declared, overrides
from lt_core.loops.batch import SKIPPED, begin_evaluation, suffixes
from lt_core.metrics.store import EVAL_EPOCH_END, FORBIDDEN, MetricStore
from lt_core.notices import warn
from lt_core.state.agreement import heard
from lt_core.state.alike import check_alike
from lt_core.state.progress import RunningStage
from lt_core.state.stage import VALIDATE, Stage

if TYPE_CHECKING:
    from lt_core.data.feed import Feed
    from lt_core.state.run import Run

__all__ = ["evaluate", "evaluation_modes", "loaders_of", "sanity_check"]


@contextmanager
def evaluation_modes(run: Run, stage: Stage) -> Iterator[None]:
    """Put the module in evaluation mode through its hook, and each submodule back in its own mode after.

    Inside the block there are no gradients; inside fit, whose weights go on, no inference mode either.
    """
    modes = {m: m.training for m in run.module.modules()}
    run.hooks.fire(f"on_{stage.hook}_model_eval")
    try:
        with torch.inference_mode() if run.plan.inference_mode and not run.fits else torch.no_grad():
            yield
    finally:
        back = f"on_{stage.hook}_model_train"
        if declared(type(run.module), back) and overrides(run.module, back):
            with run.metrics.current.inside(back):
                run.hook(getattr(run.module, back), run.module, back)()
        else:
            for module, training in modes.items():
                module.training = training


def evaluate(run: Run, stage: Stage) -> list[dict[str, float]]:
    """Run one evaluation; return its metrics, one dict a loader.

    The process's random state is the same after as before, so that how often one validates
    does not change the training.
    """
    from lt_core.state import rng

    trainer, fit = run.trainer, run.loop.fit
    if run.fits:
        fit.before_validation = validation_place(run)
    outer_stage = trainer.state.stage
    if outer_stage is not RunningStage.SANITY_CHECKING:
        trainer.state.stage = stage.running
        if run.fits:
            run.metrics.look_at_training(monitored(run).union(*(c._named() for c in run.callbacks)))
    try:
        with run.metrics.evaluation() as store, rng.isolate(run.trainer.accelerator, run.device):
            feed = loaders_of(run, stage)  # the user's loader hook must not run under inference mode
            results = []
            if feed.loaders:
                with evaluation_modes(run, stage):
                    results = run.action(_loop, f"run_{stage.hook}")(run, stage, store)
    finally:
        trainer.state.stage = outer_stage
    fit.before_validation = None  # not after an error: what is saved then repeats it
    return results


def loaders_of(run: Run, stage: Stage) -> Feed:
    """Return the feed of a stage that evaluates or predicts; warn where it has no loader."""
    feed = feed_of(run, stage)
    check_alike(run, stage.loader, "loaders", len(feed.loaders))
    if not feed.loaders:
        warn(f"Trainer.{run.fn}: {feed.where} gave no loader, so there is nothing to run.")
    return feed


def monitored(run: Run) -> set[str]:
    """Return the names of metrics that callbacks and schedulers monitor."""
    names = [s.monitor for s in run.schedulers] + [c.monitor for c in run.callbacks]
    return {name for name in names if isinstance(name, str)}


def warn_of_shared(run: Run) -> None:
    """Warn once of each monitored name that both training and validation log."""
    by_training, by_evaluation = run.metrics.results.names
    for name in sorted(monitored(run) & by_training & by_evaluation):
        if run.loop.first_time(f"shared {name}"):
            warn(
                f"{name!r} is monitored, and logged in training as well as in validation: what was logged or reduced "
                "last is looked at. Log it under two names."
            )


def _loop(run: Run, stage: Stage, store: MetricStore) -> list[dict[str, float]]:
    hooks, name = run.hooks, stage.hook
    feed, one = begin_evaluation(run, stage)
    _batches(run, feed, stage, store, one)
    store.scope = EVAL_EPOCH_END
    store.suffix = ""
    store.sync()
    run.metrics.results.read_callback(store)
    hooks.fire(f"on_{name}_epoch_end")
    store.scope = EVAL_EPOCH_END
    values = store.take_epoch()
    run.metrics.results.read_callback(store)
    run.metrics.results.read_bar(store)
    results = _results(store, feed)
    if not run.sanity_checking:
        warn_of_shared(run)
        run.log(values, stage.word, of="epoch")
    store.scope = FORBIDDEN
    hooks.fire(f"on_{name}_end")
    return results


def _batches(run: Run, feed: Feed, stage: Stage, store: MetricStore, one: Callable[[Any, int, int], Any]) -> None:
    """Run every batch of every loader, and log what its step has logged."""
    names = suffixes(feed)
    counts, keys = run.loop.evaluation.seen_batches, [stage.word + suffix for suffix in names]
    limit = run.trainer.num_sanity_val_steps if run.sanity_checking else None
    batches = run.timed_batches(feed.epoch(run.progress.epoch, limit), stage)
    for batch, i, loader in heard(run, batches):
        store.suffix = names[loader]
        if one(batch, i, loader) is SKIPPED:
            continue
        values = store.take_step()
        if not run.sanity_checking:
            seen = counts.get(keys[loader], 0)
            counts[keys[loader]] = seen + 1
            if values:
                run.log(values, stage.word, step=seen, of="batch")
    store.batch = None


def _results(store: MetricStore, feed: Feed) -> list[dict[str, float]]:
    """Return each loader's metrics; those without a loader's suffix belong to every one."""
    metrics = store.epoch_metrics()
    ends = tuple(filter(None, suffixes(feed)))
    if not ends:
        return [metrics]
    shared = {k: v for k, v in metrics.items() if not k.endswith(ends)}
    return [{**shared, **{k: v for k, v in metrics.items() if k.endswith(end)}} for end in ends]


def sanity_check(run: Run) -> None:
    """Run some validation batches before training, so that a broken validation shows at once."""
    trainer = run.trainer
    n = trainer.num_sanity_val_steps
    if not n or not trainer.enable_validation or not run.progress.epoch_closed or not has_loader(run, VALIDATE):
        return
    if not limit_of(run, VALIDATE):
        return
    outer = trainer.state.stage
    trainer.state.stage = RunningStage.SANITY_CHECKING
    try:
        with run.metrics.results.untouched():
            run.hooks.fire("on_sanity_check_start")
            evaluate(run, VALIDATE)
            run.hooks.fire("on_sanity_check_end")
    finally:
        trainer.state.stage = outer
