"""Log learning rates, momenta and weight decays of all optimizers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from lt_core.callback import Callback
from lt_core.notices import warn
from lt_interface.errors import ConfigError, MisconfigurationException, Problem, nearest

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["LearningRateMonitor"]

_INTERVALS = (None, "step", "epoch")


@dataclass(frozen=True)
class _Source:
    """Name one optimizer and say when its values are due; ``"any"`` is due at both."""

    name: str
    optimizer: Optimizer
    interval: str


class LearningRateMonitor(Callback):
    """Log each optimizer's learning rate while training, by the step or by the epoch.

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
        if logging_interval not in _INTERVALS:
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that there is a logger, and that groups can be told apart."""
        if not trainer.loggers:
            raise MisconfigurationException(
                Problem(
                    "Trainer(callbacks=[LearningRateMonitor()])",
                    "LearningRateMonitor needs a logger",
                    "logger=False",
                    "Drop the callback, or pass a logger.",
                )
            )
        self._logged_step = -1
        self.lrs = {}
        for key, group in self._groups(trainer, "any"):
            self.lrs.setdefault(key, [])
            if self.log_momentum and _momentum(group) is None:
                warn(f"LearningRateMonitor(log_momentum=True): {key} has no momentum; it is logged as 0.")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log by the step, at the steps that are logged anyway."""
        every = trainer.log_every_n_steps
        step = trainer.global_step
        if not every or ((step + 1) % every and not trainer.should_stop) or step == self._logged_step:
            return
        if self.logging_interval != "epoch":
            self._logged_step = step
            self._log(trainer, "any" if self.logging_interval == "step" else "step")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log by the epoch."""
        if self.logging_interval != "step":
            self._log(trainer, "any" if self.logging_interval == "epoch" else "epoch")

    def _log(self, trainer: Trainer, interval: str) -> None:
        values: dict[str, float] = {}
        for key, group in self._groups(trainer, interval):
            values[key] = float(group["lr"])
            self.lrs.setdefault(key, []).append(values[key])
            if self.log_momentum:
                values[f"{key}-momentum"] = self.last_momentum_values[f"{key}-momentum"] = _momentum(group) or 0.0
            if self.log_weight_decay:
                decay = float(group.get("weight_decay", 0.0))
                values[f"{key}-weight_decay"] = self.last_weight_decay_values[f"{key}-weight_decay"] = decay
        if values:
            trainer.log_metrics(values, trainer.global_step)
            trainer.callback_metrics.update({key: torch.tensor(value) for key, value in values.items()})

    def _groups(self, trainer: Trainer, interval: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the key and the group of all that is due."""
        for source in _sources(trainer):
            if "any" not in (interval, source.interval) and source.interval != interval:
                continue
            groups = source.optimizer.param_groups
            names = [group.get("name") for group in groups]
            given = [name for name in names if name is not None]
            if len(given) != len(set(given)):
                raise MisconfigurationException(
                    Problem(
                        "LearningRateMonitor",
                        f"the parameter groups of {source.name!r} need different names",
                        ", ".join(map(str, given)),
                    )
                )
            for index, (name, group) in enumerate(zip(names, groups, strict=True), 1):
                suffix = f"/{name}" if name is not None else f"/pg{index}" if len(groups) > 1 else ""
                yield f"{self.log_key_prefix or ''}{source.name}{suffix}", group


def _sources(trainer: Trainer) -> list[_Source]:
    """Return every optimizer once, those with a scheduler first, under a name of its own."""
    found: list[_Source] = []
    seen: Counter[type] = Counter()
    have_scheduler: set[int] = set()
    used: Counter[str] = Counter()

    def unique(optimizer: Optimizer, name: str | None) -> str:
        if name is None:
            seen[type(optimizer)] += 1
            count = seen[type(optimizer)]
            name = f"lr-{type(optimizer).__name__}" + (f"-{count - 1}" if count > 1 else "")
        used[name] += 1
        return name if used[name] == 1 else f"{name}-{used[name] - 1}"

    for config in trainer.lr_scheduler_configs:
        optimizer = getattr(config.scheduler, "optimizer", None)
        if optimizer is None:
            continue  # a scheduler of the user's own making that steps something else
        if id(optimizer) in have_scheduler and config.name is None:
            continue  # a second scheduler of the same optimizer shows the same rate
        have_scheduler.add(id(optimizer))
        found.append(_Source(unique(optimizer, config.name), optimizer, config.interval))
    for optimizer in trainer.optimizers:
        if id(optimizer) not in have_scheduler:
            found.append(_Source(unique(optimizer, None), optimizer, "any"))
    return found


def _momentum(group: dict[str, Any]) -> float | None:
    if "momentum" in group:
        return float(group["momentum"])
    if "betas" in group:
        return float(group["betas"][0])
    return None
