"""Read what configure_optimizers returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from lt_core.hooks.table import overrides
from lt_core.notices import warn
from lt_interface.errors import ConfigError, MisconfigurationException, Problem

__all__ = ["SchedulerConfig", "check_exchanged", "check_optimizers", "parse_optimizers"]

_WHERE = "LightningModule.configure_optimizers"
_ABILITIES = ("step", "zero_grad", "state_dict", "load_state_dict", "param_groups", "state", "defaults")
_FORMS = (
    "Return an optimizer, a list of them, ([optimizers], [schedulers]), "
    '{"optimizer": ..., "lr_scheduler": ...}, a list of such dicts, or None.'
)


@dataclass
class SchedulerConfig:
    """When and how a learning-rate scheduler steps.

    Attributes:
        scheduler: Anything with ``step`` and, to be resumed, ``state_dict``.
        name: The name LearningRateMonitor logs under.
        interval: ``"step"`` or ``"epoch"``.
        frequency: Step at each so-many-th interval.
        reduce_on_plateau: Whether ``step`` takes a metric.
        monitor: The metric's name for those that take one.
        strict: Whether a missing metric is an error; else a warning.
    """

    scheduler: Any
    name: str | None = None
    interval: str = "epoch"
    frequency: int = 1
    reduce_on_plateau: bool = False
    monitor: str | None = None
    strict: bool = True


def _refuse(rule: str, got: Any = None, fix: str = _FORMS, where: str = _WHERE) -> MisconfigurationException:
    return MisconfigurationException(Problem(where, rule, "" if got is None else repr(got), fix))


def _is_optimizer(x: Any) -> bool:
    """Return whether something is an optimizer, by its class or by what it can do."""
    return isinstance(x, Optimizer) or (not isinstance(x, type) and all(hasattr(x, name) for name in _ABILITIES))


def _steps(scheduler: Any, optimizers: Sequence[Any]) -> bool:
    """Return whether a scheduler's optimizer, if it has one, is among these, or one of these wraps it."""
    owner = getattr(scheduler, "optimizer", None)
    groups = [o.param_groups for o in optimizers]
    return not isinstance(owner, Optimizer) or any(owner.param_groups is own for own in groups)


def parse_optimizers(returned: Any, module: Any) -> tuple[list[Optimizer], list[SchedulerConfig]]:
    """Return the optimizers and scheduler configurations of any documented form.

    Raises:
        MisconfigurationException: If the form or a scheduler's settings are none we know.
    """
    optimizers, raw = _split(returned)
    check_optimizers(optimizers, module)
    return optimizers, [_scheduler(item, monitor, optimizers, module) for item, monitor in raw]


def check_optimizers(optimizers: Sequence[Any], module: Any, where: str = _WHERE) -> None:
    """Refuse what is no optimizer, or one too many, and warn of parameters that none holds.

    Args:
        optimizers: What the module returned, or what users put in its place.
        module: The module.
        where: Where they come from.

    Raises:
        MisconfigurationException: If something is no optimizer.
        ConfigError: If there are several under automatic optimization.
    """
    for optimizer in optimizers:
        if not _is_optimizer(optimizer):
            raise _refuse("every optimizer must be a torch.optim.Optimizer", optimizer, where=where)
    if not module.automatic_optimization:
        return
    if len(optimizers) > 1:
        rule = f"automatic optimization takes one optimizer, here are {len(optimizers)}"
        fix = "Set self.automatic_optimization = False in __init__ and step them in training_step."
        raise ConfigError(Problem(where, rule, fix=fix))
    _warn_unheld(module, optimizers, where)


def check_exchanged(optimizers: Sequence[Any], schedulers: Sequence[SchedulerConfig], module: Any) -> None:
    """Check optimizers or trainable parameters that users changed in a fit, as those of its beginning were.

    Raises:
        MisconfigurationException: If something is no optimizer.
        ConfigError: If there are several under automatic optimization.
    """
    check_optimizers(optimizers, module, "trainer.optimizers")
    for config in schedulers:
        if not _steps(config.scheduler, optimizers):
            kind = type(config.scheduler.optimizer).__name__
            warn(
                f"trainer.optimizers: a learning-rate scheduler still steps a {kind} that is not among them. "
                "Exchange trainer.lr_scheduler_configs too."
            )


def _split(returned: Any) -> tuple[list[Any], list[tuple[Any, str | None]]]:
    """Return optimizers and (scheduler or its dict, monitor) pairs."""
    if returned is None or returned in ([], ()):
        warn(f"{_WHERE} returned {returned}: this fit will run with no optimizer.")
        return [], []
    if isinstance(returned, Mapping):
        return _from_dicts([returned])
    if _is_optimizer(returned):
        return [returned], []
    if isinstance(returned, (list, tuple)):
        if len(returned) == 2 and isinstance(returned[0], (list, tuple)):
            schedulers = returned[1] if isinstance(returned[1], (list, tuple)) else [returned[1]]
            return list(returned[0]), [(s, None) for s in schedulers if s is not None]
        if all(isinstance(x, Mapping) for x in returned):
            return _from_dicts(returned)
        if all(map(_is_optimizer, returned)):
            return list(returned), []
    raise _refuse("unknown form of return value", returned)


def _from_dicts(dicts: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[tuple[Any, str | None]]]:
    optimizers, schedulers = [], []
    for d in dicts:
        if "optimizer" not in d:
            raise _refuse('a dict must have the key "optimizer"', list(d))
        _warn_unknown("keys", set(d) - {"optimizer", "lr_scheduler", "monitor"}, "optimizer, lr_scheduler, monitor")
        optimizers.append(d["optimizer"])
        if d.get("lr_scheduler") is not None:
            schedulers.append((d["lr_scheduler"], d.get("monitor")))
    return optimizers, schedulers


def _warn_unknown(what: str, unknown: set[Any], known: str) -> None:
    if unknown:
        warn(f"{_WHERE}: the {what} {sorted(unknown)} are not known and are ignored. Known: {known}.")


def _scheduler(item: Any, monitor: str | None, optimizers: Sequence[Optimizer], module: Any) -> SchedulerConfig:
    given = item if isinstance(item, Mapping) else {"scheduler": item}
    known = {f.name for f in fields(SchedulerConfig)}
    if "scheduler" not in given:
        raise _refuse('an lr_scheduler dict must have the key "scheduler"', list(given))
    _warn_unknown("lr_scheduler keys", set(given) - known, str(sorted(known)))
    ignored = {"interval", "frequency", "reduce_on_plateau", "monitor", "strict"} & set(given)
    if ignored and not module.automatic_optimization:
        warn(f"{_WHERE}: with manual optimization you step schedulers yourself; {sorted(ignored)} are ignored.")
    config = SchedulerConfig(**{k: v for k, v in given.items() if k in known})
    if isinstance(config.scheduler, ReduceLROnPlateau) and "reduce_on_plateau" not in given:
        config.reduce_on_plateau = True
    config.monitor = config.monitor or monitor
    _check_scheduler(config, optimizers, module)
    return config


def _check_scheduler(config: SchedulerConfig, optimizers: Sequence[Optimizer], module: Any) -> None:
    scheduler, automatic = config.scheduler, module.automatic_optimization
    if config.interval not in ("step", "epoch"):
        raise _refuse('interval must be "step" or "epoch"', config.interval, 'Write "interval": "epoch".')
    if isinstance(config.frequency, bool) or not isinstance(config.frequency, int) or config.frequency < 1:
        raise _refuse("frequency must be a whole number of at least 1", config.frequency, "")
    if config.reduce_on_plateau and config.monitor is None and automatic:
        raise _refuse("ReduceLROnPlateau needs the metric that it watches", fix='Add "monitor": "val_loss".')
    claimed = config.reduce_on_plateau and callable(getattr(scheduler, "step", None))  # the user names what step takes
    foreign = not isinstance(scheduler, (LRScheduler, ReduceLROnPlateau)) and not claimed
    if foreign and automatic and not overrides(module, "lr_scheduler_step"):
        rule = "the trainer does not know how to step a scheduler that is none of torch's"
        raise _refuse(rule, scheduler, "Override lr_scheduler_step(self, scheduler, metric) in the module.")
    if not hasattr(scheduler, "step") and not overrides(module, "lr_scheduler_step"):
        raise _refuse("a scheduler must have a step method", scheduler)
    if not _steps(scheduler, optimizers):
        raise _refuse("a scheduler's optimizer must be among those returned", fix="Return that optimizer too.")
    if isinstance(scheduler, (OneCycleLR, CyclicLR)) and config.interval == "epoch" and automatic:
        warn(
            f"{type(scheduler).__name__} is stepped once an epoch here; it is made to be stepped every batch. "
            'Set {"interval": "step"}.'
        )


def _warn_unheld(module: torch.nn.Module, optimizers: Sequence[Optimizer], where: str) -> None:
    """Warn of trainable parameters that no optimizer holds, by name."""
    held = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
    loose = [n for n, p in module.named_parameters() if p.requires_grad and id(p) not in held]
    if optimizers and loose:
        shown = ", ".join(loose[:10]) + (f" and {len(loose) - 10} more" if len(loose) > 10 else "")
        warn(
            f"{where}: no optimizer holds these trainable parameters: {shown}. "
            "Pass them to an optimizer, or freeze them with requires_grad_(False)."
        )
