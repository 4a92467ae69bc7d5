"""Change how many batches make one optimizer step, from epoch to epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lt_core.callback import Callback
from lt_core.config.parsers import is_whole
from lt_interface.errors import ConfigError, Problem, raise_problems

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["GradientAccumulationScheduler"]


class GradientAccumulationScheduler(Callback):
    """Callback that sets the batches of an optimizer step by the epoch in which their number changes.

    Args:
        scheduling: The number of batches by the epoch, counted from 0, from which on it holds; 1 before the first.

    Raises:
        ConfigError: If there is no epoch, or an epoch or a number is none; all problems at once.

    Example:
        >>> GradientAccumulationScheduler({0: 8, 4: 4, 8: 1}).get_accumulate_grad_batches(5)
        4
    """

    def __init__(self, scheduling: Mapping[int, int]) -> None:
        where = f"GradientAccumulationScheduler(scheduling={scheduling!r})"
        fix = "Write {epoch: batches, ...}, such as {0: 8, 4: 1}."
        if not isinstance(scheduling, Mapping) or not scheduling:
            raise ConfigError(Problem(where, "this must say from which epoch on how many batches make a step", fix=fix))
        wrong = [
            *(("an epoch is an integer of at least 0", key) for key in scheduling if not is_whole(key) or key < 0),
            *(("batches are an integer of at least 1", n) for n in scheduling.values() if not is_whole(n) or n < 1),
        ]
        raise_problems([Problem(where, rule, repr(got), fix) for rule, got in wrong])
        self.scheduling = dict(sorted(scheduling.items()))

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """Return how many batches make a step in an epoch.

        Args:
            epoch: The epoch's number.
        """
        return next((n for first, n in reversed(self.scheduling.items()) if first <= epoch), 1)

    def going_to_accumulate_grad_batches(self) -> bool:
        """Return whether any epoch takes more than one batch for a step."""
        return any(n > 1 for n in self.scheduling.values())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the number, for an epoch that is resumed; refuse manual optimization, and a number beside the schedule.

        Raises:
            ConfigError: For either of them.
        """
        where = "GradientAccumulationScheduler"
        if not pl_module.automatic_optimization:
            rule = "manual optimization steps when the module says so"
            raise ConfigError(Problem(where, rule, "automatic_optimization=False", "Leave the callback out."))
        if "accumulate_grad_batches" in trainer._config.explicit and trainer._config.accumulate_grad_batches != 1:
            rule, got = "one of the two sets the batches of a step", "accumulate_grad_batches of the Trainer beside it"
            raise ConfigError(Problem(where, rule, got, "Leave accumulate_grad_batches out."))
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the number for the epoch that begins."""
        trainer.accumulate_grad_batches = self.get_accumulate_grad_batches(trainer.current_epoch)
