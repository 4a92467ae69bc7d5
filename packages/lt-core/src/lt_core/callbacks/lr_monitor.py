"""Log learning rates, momenta and weight decays of all optimizers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain, count
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from lt_core.callback import Callback
from lt_core.notices import warn
from lt_interface.errors import ConfigError, MisconfigurationException, Problem, nearest

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["LearningRateMonitor"]

# Rates, momenta and weight decays by key.
_Measured: TypeAlias = tuple[dict[str, float], dict[str, float], dict[str, float]]


class LearningRateMonitor(Callback):
    """Callback that logs each optimizer's learning rate in training, by the step or by the epoch.

    Keys are ``lr-<optimizer class>``, or the scheduler's ``name``; a second optimizer of the same
    class gets ``-1``, and the groups of one that has several get ``/pg1``, ``/pg2`` or their own name.

    Args:
        logging_interval: ``"step"``, ``"epoch"``, or None: each at its scheduler's own interval.
        log_momentum: Whether momentum (or Adam's first beta) is logged as ``<key>-momentum``.
        log_weight_decay: Whether weight decay is logged as ``<key>-weight_decay``.
        log_key_prefix: Put before each key.

    Attributes:
        lrs: What was logged, by key.
        last_momentum_values: The newest momentum by key.
        last_weight_decay_values: The newest weight decay by key.

    Raises:
        ConfigError: If the interval is none of these.
    """

    def __init__(
        self,
        logging_interval: Literal["step", "epoch"] | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
        log_key_prefix: str | None = None,
    ) -> None:
        if logging_interval not in (None, "step", "epoch"):
            where = f"LearningRateMonitor(logging_interval={logging_interval!r})"
            fix = nearest(str(logging_interval), ("step", "epoch"))
            raise ConfigError(Problem(where, 'must be "step", "epoch" or None', fix=fix))
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        self.log_key_prefix = log_key_prefix
        self.lrs: dict[str, list[float]] = {}
        self.last_momentum_values: dict[str, float] = {}
        self.last_weight_decay_values: dict[str, float] = {}
        self._logged_step = -1
        self._newest: tuple[int, _Measured] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is a logger, and that the names of parameter groups differ."""
        if not trainer.loggers:
            where, fix = "Trainer(callbacks=[LearningRateMonitor()])", "Drop the callback, or pass a logger."
            raise MisconfigurationException(Problem(where, "LearningRateMonitor needs a logger", "logger=False", fix))
        self._logged_step, self._newest = -1, None
        self.lrs = {}
        for key, group in self._groups(trainer, "any"):
            self.lrs.setdefault(key, [])
            if self.log_momentum and _momentum(group) is None:
                warn(f"LearningRateMonitor(log_momentum=True): {key} has no momentum; it is logged as 0.")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log by the step, at the steps that are logged anyway."""
        every, step = trainer.log_every_n_steps, trainer.global_step
        if not every or self.logging_interval == "epoch" or step == self._logged_step:
            return
        due = (step + 1) % every == 0 or trainer.should_stop
        if due or self._newest is not None or self._logged_step < 0:
            measured = self._measure(trainer, "any" if self.logging_interval == "step" else "step")
            self._newest = step, measured
            if due:
                self._log_step(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log by the epoch."""
        self._newest = -1, ({}, {}, {})  # no step of this epoch is logged yet: each is measured until one is
        if self.logging_interval != "step":
            interval = "any" if self.logging_interval == "epoch" else "epoch"
            self._log(trainer, self._measure(trainer, interval), trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log by the step where the epoch's last step was logged, since no other one was."""
        if self._newest is not None and self._newest[0] + 1 == trainer.global_step == trainer.logged_step:
            self._log_step(trainer)

    def _log_step(self, trainer: Trainer) -> None:
        """Log what was measured before the newest step; no other one of this epoch needs to be kept."""
        assert self._newest is not None
        (self._logged_step, measured), self._newest = self._newest, None
        self._log(trainer, measured, self._logged_step)

    def _measure(self, trainer: Trainer, interval: str) -> _Measured:
        """Return rates, momenta and weight decays by key, of all that is due."""
        rates: dict[str, float] = {}
        momenta: dict[str, float] = {}
        decays: dict[str, float] = {}
        for key, group in self._groups(trainer, interval):
            rates[key] = float(group["lr"])
            if self.log_momentum:
                momenta[f"{key}-momentum"] = _momentum(group) or 0.0
            if self.log_weight_decay:
                decays[f"{key}-weight_decay"] = float(group.get("weight_decay", 0.0))
        return rates, momenta, decays

    def _log(self, trainer: Trainer, measured: _Measured, step: int) -> None:
        rates, momenta, decays = measured
        for key, rate in rates.items():
            self.lrs.setdefault(key, []).append(rate)
        self.last_momentum_values |= momenta
        self.last_weight_decay_values |= decays
        if values := rates | momenta | decays:
            trainer.log_metrics(values, step)
            trainer.callback_metrics.update({key: torch.tensor(value) for key, value in values.items()})

    def _groups(self, trainer: Trainer, interval: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the key and the group of all that is due.

        Raises:
            MisconfigurationException: If two values would get the same key.
        """
        due, taken = [], Counter[str]()
        suffixes = ["", *["-momentum"] * self.log_momentum, *["-weight_decay"] * self.log_weight_decay]
        for source, (optimizer, its_interval) in _sources(trainer).items():
            groups = optimizer.param_groups
            for index, group in enumerate(groups, 1):
                name = group.get("name")
                part = f"/{name}" if name is not None else f"/pg{index}" if len(groups) > 1 else ""
                key = f"{self.log_key_prefix or ''}{source}{part}"
                taken.update(key + suffix for suffix in suffixes)
                if "any" in (interval, its_interval) or its_interval == interval:
                    due.append((key, group))
        if twice := [key for key, times in taken.items() if times > 1]:
            rule = "parameter groups need different names, and so do optimizers"
            fix = 'Set another "name" in a group, or in the dict of its scheduler.'
            raise MisconfigurationException(Problem("LearningRateMonitor", rule, f"twice {', '.join(twice)}", fix))
        yield from due


def _sources(trainer: Trainer) -> dict[str, tuple[Optimizer, str]]:
    """Return by name every optimizer once, and when it is due; those with a scheduler first, ``"any"`` is due at both.

    A second scheduler of the same optimizer shows the same rate, and counts only under a name of its own.
    """
    scheduled = [
        (config.scheduler.optimizer, config.name, config.interval)
        for config in trainer.lr_scheduler_configs
        if getattr(config.scheduler, "optimizer", None) is not None  # the user's own may step something else
    ]
    found: dict[str, tuple[Optimizer, str]] = {}
    known: set[int] = set()
    for optimizer, name, interval in [*scheduled, *((one, None, "any") for one in trainer.optimizers)]:
        if name is None and id(optimizer) in known:
            continue
        known.add(id(optimizer))
        base = f"lr-{type(optimizer).__name__}" if name is None else name
        names = chain([base], (f"{base}-{number}" for number in count(1)))
        found[next(free for free in names if free not in found)] = optimizer, interval
    return found


def _momentum(group: dict[str, Any]) -> float | None:
    if "momentum" in group:
        return float(group["momentum"])
    return float(group["betas"][0]) if "betas" in group else None
