"""Step the learning-rate schedulers at their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lt_core.hooks.table import overrides
from lt_core.loops.calls import warn_owned
from lt_core.metrics.absent import missing
from lt_core.notices import warn
from lt_core.state.agreement import from_rank_zero
from lt_interface.errors import MisconfigurationException

if TYPE_CHECKING:
    from lt_core.optim.parse import SchedulerConfig
    from lt_core.state.run import Run

__all__ = ["after_step", "step_epoch", "step_plateau", "with_each_step"]


def with_each_step(run: Run) -> list[Any]:
    """Return the schedulers that step with the optimizer each time and need no metric: an engine may step them."""
    return [s.scheduler for s in _active(run) if _by_step(s) and s.frequency == 1]


def _by_step(config: SchedulerConfig) -> bool:
    return config.interval == "step" and not config.reduce_on_plateau


def _active(run: Run) -> list[SchedulerConfig]:
    return run.schedulers if run.module.automatic_optimization else []


def _stepper(run: Run, config: SchedulerConfig) -> Callable[[Any], Any]:
    """Return what steps one scheduler: its own method unless the module overrides the hook."""
    if overrides(run.module, "lr_scheduler_step"):
        own = run.hook(run.module.lr_scheduler_step, run.module, "lr_scheduler_step")
        return partial(_own_step, run, own, config)
    scheduler = config.scheduler
    return lambda metric: scheduler.step() if metric is None else scheduler.step(metric)


def _own_step(run: Run, own: Callable[..., Any], config: SchedulerConfig, metric: Any) -> None:
    with run.metrics.current.inside("lr_scheduler_step"):
        own(config.scheduler, metric)


def after_step(run: Run) -> Callable[[int], None] | None:
    """Return what the loop calls after each step for schedulers that need no metric, or None.

    Those of interval ``"step"`` step after every ``frequency``-th optimizer step of the whole training, unless the
    engine steps them; those of interval ``"epoch"`` after the epoch's last batch. To be called once its size is known.
    """
    configs, owned = _active(run), []
    if "schedule" in run.engine.owns:
        owned = with_each_step(run)
        if owned and overrides(run.module, "lr_scheduler_step"):
            warn_owned(run, "lr_scheduler_step", "steps the schedulers")
    by_step = [(_stepper(run, s), s.frequency) for s in configs if _by_step(s) and s.scheduler not in owned]
    by_epoch = any(s.interval == "epoch" and not s.reduce_on_plateau for s in configs)
    if not by_epoch and all(s.interval != "step" for s in configs):
        return None
    fit, progress = run.loop.fit, run.progress
    before = progress.step
    last = run.feed.num_batches if run.feed.exact else math.inf  # else at the end of the data

    def step(index: int) -> None:
        nonlocal before
        fit.skipped, before = progress.step == before, progress.step
        if by_step and not fit.skipped:
            for f, frequency in by_step:
                if progress.step % frequency == 0:
                    f(None)
        if by_epoch and index + 1 >= last:
            step_epoch(run)

    return step


def step_epoch(run: Run) -> None:
    """Step the metric-less schedulers of interval ``"epoch"`` once in the running epoch."""
    if run.loop.fit.schedulers_done:
        return
    run.loop.fit.schedulers_done = True
    for config in _active(run):
        if (
            config.interval == "epoch"
            and not config.reduce_on_plateau
            and (run.progress.epoch + 1) % config.frequency == 0
        ):
            _stepper(run, config)(None)


def step_plateau(run: Run, interval: str, count: int) -> None:
    """Step the schedulers that watch a metric.

    Args:
        run: The run.
        interval: ``"step"`` or ``"epoch"``.
        count: Optimizer steps or completed epochs, against the scheduler's frequency.

    Raises:
        MisconfigurationException: If a watched metric is not logged and the scheduler is strict.
    """
    for config in _active(run):
        if config.interval != interval or not config.reduce_on_plateau or count % config.frequency:
            continue
        run.metrics.train.share()
        metrics = run.trainer.callback_metrics
        name = config.monitor or ""
        early = interval == "step" and name in run.trainer.epoch_metrics  # the epoch is not over
        value, early = from_rank_zero(run.trainer, (metrics.get(name), early))
        if early:
            continue
        if value is None:
            _missing(run, config, metrics)
            continue
        _stepper(run, config)(value)


def _missing(run: Run, config: SchedulerConfig, logged: Iterable[str]) -> None:
    where = f"lr_scheduler {type(config.scheduler).__name__}, monitor {config.monitor!r}"
    problem = missing(run.trainer, where, config.monitor or "", logged)
    if config.strict:
        problem = replace(problem, fix=f'{problem.fix} Or set "strict": False.')
        raise MisconfigurationException(problem)
    warn(str(problem))
