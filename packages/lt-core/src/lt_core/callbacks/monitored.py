"""Find the metric that a callback monitors, the place where it is looked at, and what is there when it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lt_core.state.agreement import from_rank_zero
from lt_core.state.progress import TrainerFn
from lt_interface.errors import MisconfigurationException

if TYPE_CHECKING:
    from lt_core.trainer import Trainer

__all__ = [
    "MonitorError",
    "acts_at_epoch_end",
    "candidates",
    "is_real_fit",
    "snapshot",
    "waits_for_epoch_end",
]


class MonitorError(MisconfigurationException, RuntimeError):
    """Error of a monitored metric that was never logged."""


def is_real_fit(trainer: Trainer) -> bool:
    """Return whether the trainer fits, and neither checks its sanity nor only tries each loop."""
    return bool(trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not trainer.fast_dev_run)


def waits_for_epoch_end(trainer: Trainer, monitor: str | None) -> bool:
    """Return whether a monitored value is training's over a part of an epoch; every rank must call it.

    Such a value is looked at when its epoch is over, in epochs in which there is a validation to look after.
    """
    if monitor is None:
        return False
    return from_rank_zero(trainer, monitor in trainer.epoch_metrics and trainer.validated_in_epoch)


def acts_at_epoch_end(trainer: Trainer, choice: bool | None, monitor: str | None) -> bool:
    """Return whether a callback acts at the train epoch's end, and not at the end of validation.

    Args:
        trainer: The trainer, whose validation decides.
        choice: What the user chose; None where validation once an epoch, or none, means the epoch's end.
        monitor: The metric that is looked at: one that is reduced over the epoch is waited for.
    """
    once_an_epoch = trainer.check_val_every_n_epoch == 1 and trainer.val_check_interval == 1.0
    at_end = (once_an_epoch or not trainer.enable_validation) if choice is None else choice
    return at_end or waits_for_epoch_end(trainer, monitor)


def candidates(trainer: Trainer) -> dict[str, Tensor]:
    """Return what can be monitored or named in a file: all logged metrics, ``epoch`` and ``step``, as rank 0 has them.

    Every rank must call it at the same place, since what is decided with it must be the same.
    """
    trainer.share_metrics()
    found = dict(trainer.callback_metrics)
    for name, count in (("epoch", trainer.current_epoch), ("step", trainer.global_step)):
        logged = found.get(name)
        found[name] = torch.tensor(count) if logged is None else logged.int()
    if trainer.world_size > 1:
        found = from_rank_zero(trainer, {name: snapshot(value) for name, value in found.items()})
    return found


def snapshot(value: Any) -> Tensor:
    """Return a metric as a 0-dim tensor on the CPU that nobody else holds."""
    tensor: Tensor = torch.as_tensor(value).detach()
    return tensor.to("cpu", copy=True).reshape(())
