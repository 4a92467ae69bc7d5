"""Average the weights of the last epochs, trained with a learning rate that stays high."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import SWALR

from lt_core.callbacks.weight_averaging import Averager
from lt_core.config.parsers import is_whole
from lt_core.notices import info, warn
from lt_core.optim.parse import SchedulerConfig
from lt_core.state.progress import TrainerFn
from lt_interface.errors import Problem, nearest, raise_problems

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["StochasticWeightAveraging"]


_CPU = torch.device("cpu")


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


class StochasticWeightAveraging(Averager):
    """Callback that averages the weights with which the last epochs begin, and leaves the average in the module.

    From its first epoch on the learning rate moves to ``swa_lrs``, by torch's `SWALR` in the place of the module's own
    scheduler. Validation and checkpoints have the trained weights; when training ends, the average takes their place,
    and the statistics of BatchNorm layers are made anew by one more pass over the training data. A resumed run goes on
    with the average, to the bit.

    Args:
        swa_lrs: The learning rate, or one for each parameter group.
        swa_epoch_start: The first epoch that counts: its number from 1 on, or a fraction of ``max_epochs``.
        annealing_epochs: In how many epochs the learning rate gets there.
        annealing_strategy: Its way: ``"cos"`` or ``"linear"``.
        avg_fn: Returns the new average of ``(average, weights, number of updates before)``; all weigh the same if None.
        device: Where the average lies; None where the module does.

    Raises:
        ConfigError: If an argument is out of range; all problems at once.

    Example:
        >>> StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=8).swa_start
        7
    """

    def __init__(
        self,
        swa_lrs: float | list[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        avg_fn: Callable[[Tensor, Tensor, Tensor | int], Tensor] | None = None,
        device: torch.device | str | int | None = _CPU,
    ) -> None:
        name, start, problems = type(self).__name__, swa_epoch_start, list[Problem]()
        rates = swa_lrs if isinstance(swa_lrs, list) else [swa_lrs]
        if not rates or not all(map(_is_rate, rates)):
            rule = "this must be a positive number, or a list of one for each parameter group"
            problems.append(Problem(f"{name}(swa_lrs={swa_lrs!r})", rule, fix="Write swa_lrs=0.05."))
        fraction = isinstance(start, float) and 0 <= start <= 1
        if not fraction and not (is_whole(start) and start >= 1):
            rule = "this must be an epoch's number of at least 1, or a fraction from 0.0 to 1.0"
            problems.append(Problem(f"{name}(swa_epoch_start={start!r})", rule, fix="Write swa_epoch_start=0.8."))
        if not is_whole(annealing_epochs) or annealing_epochs < 0:
            where, rule = f"{name}(annealing_epochs={annealing_epochs!r})", "this must be an integer of at least 0"
            problems.append(Problem(where, rule, fix="Write annealing_epochs=10."))
        if annealing_strategy not in ("cos", "linear"):
            where = f"{name}(annealing_strategy={annealing_strategy!r})"
            fix = nearest(str(annealing_strategy), ("cos", "linear"))
            problems.append(Problem(where, 'this must be "cos" or "linear"', fix=fix))
        if avg_fn is not None and not callable(avg_fn):
            problems.append(Problem(f"{name}(avg_fn={avg_fn!r})", "this must be a function", fix="Leave it out."))
        raise_problems(problems)
        super().__init__(device, use_buffers=False, avg_fn=avg_fn)
        self._rates: float | list[float] = swa_lrs
        self._epoch_start, self._max_epochs = start, 0
        self._annealing: dict[str, Any] = {"anneal_epochs": annealing_epochs, "anneal_strategy": annealing_strategy}
        self._latest_update_epoch = -1
        self._scheduled = False

    @property
    def swa_start(self) -> int:
        """Return the first epoch, counted from 0, with whose weights the average begins."""
        start = self._epoch_start
        return max((start if isinstance(start, int) else int(self._max_epochs * start)) - 1, 0)

    @property
    def swa_end(self) -> int:
        """Return the last epoch, counted from 0, with whose weights the average is updated."""
        return self._max_epochs - 1

    def _problems(self, trainer: Trainer) -> list[Problem]:
        problems, start, most = (
            super()._problems(trainer),
            self._epoch_start,
            -1 if trainer.max_epochs is None else trainer.max_epochs,
        )
        where = f"{type(self).__name__}(swa_epoch_start={start!r})"
        if most < 0:
            rule = "max_epochs must say when the average ends"
            problems.append(Problem(where, rule, f"max_epochs={trainer.max_epochs}", "Write Trainer(max_epochs=...)."))
        elif isinstance(start, int) and start > most > 0 and not trainer.fast_dev_run:
            problems.append(Problem(where, f"this must be at most max_epochs={most}", fix=f"Write {most} or less."))
        self._max_epochs = most
        return problems

    def state_dict(self) -> dict[str, Any]:
        """Return the average, the epoch of its last update, and whether the learning rate is on its way."""
        return {
            "latest_update_epoch": self._latest_update_epoch,
            "scheduled": self._scheduled,
            "kept": self._snapshot(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self._latest_update_epoch, self._scheduled = state_dict["latest_update_epoch"], state_dict["scheduled"]
        if self._average is None:
            self._kept = state_dict["kept"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the average, where training goes on."""
        kept = (checkpoint.get("callbacks") or {}).get(self.state_key, {}).get("kept")
        if trainer.state.fn == TrainerFn.FITTING:
            self._kept = None
            if kept is not None:
                self._take(trainer, pl_module, kept)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse optimizers that cannot be averaged with, and go on where a checkpoint or an earlier fit left off.

        Raises:
            ConfigError: If there are several optimizers or schedulers, or the rates are not as many as the groups.
        """
        if not trainer.global_step:  # this is a new training
            self._latest_update_epoch, self._scheduled, self._kept = -1, False, None
        super().on_fit_start(trainer, pl_module)
        name, optimizers, schedulers = type(self).__name__, trainer.optimizers, trainer.lr_scheduler_configs
        problems = []
        if len(optimizers) != 1:
            rule, fix = "this takes one optimizer", "Average by WeightAveraging instead."
            problems.append(Problem(name, rule, f"{len(optimizers)} of configure_optimizers", fix))
        if len(schedulers) > 1:
            rule, fix = "this takes one scheduler at most, which it replaces", "Put them into one SequentialLR."
            problems.append(Problem(name, rule, f"{len(schedulers)} of configure_optimizers", fix))
        groups = len(optimizers[0].param_groups) if optimizers else 0
        if isinstance(self._rates, list) and groups and len(self._rates) != groups:
            rule, fix = "a list must have one rate for each parameter group", "Write one number for all."
            problems.append(Problem(f"{name}(swa_lrs={self._rates!r})", rule, f"{groups} groups", fix))
        raise_problems(problems)
        if self._scheduled:
            self._schedule(trainer)
        if not pl_module.automatic_optimization and any(_norms(pl_module)):
            warn(f"{name}: with manual optimization the statistics of BatchNorm layers are left as they are.")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the average with the weights of the epoch's start, from the first epoch that counts on."""
        epoch = trainer.current_epoch
        if not self.swa_start <= epoch <= self.swa_end:
            return
        if not self._scheduled:
            self._scheduled = True
            self._schedule(trainer)
        if epoch > self._latest_update_epoch:
            self._update(pl_module)
            self._latest_update_epoch = epoch

    def _schedule(self, trainer: Trainer) -> None:
        """Put a scheduler that leads to the rates in the place of the module's."""
        schedulers: list[SchedulerConfig] = trainer.lr_scheduler_configs
        if schedulers:
            info(f"{type(self).__name__}: SWALR takes the place of {type(schedulers[0].scheduler).__name__}.")
        rates: Any = self._rates
        schedulers[:] = [SchedulerConfig(SWALR(trainer.optimizers[0], rates, **self._annealing))]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module, its BatchNorm statistics made anew."""
        super().on_train_end(trainer, pl_module)
        layers = _norms(pl_module)
        if not self._ended or not layers or not pl_module.automatic_optimization:
            return
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # so that all batches weigh the same
        trainer.forward_training_data()
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            for statistic in (layer.running_mean, layer.running_var):
                if trainer.world_size > 1 and statistic is not None:
                    statistic.copy_(trainer.collectives.reduce(statistic))


def _norms(module: nn.Module) -> list[_BatchNorm]:
    """Return the layers of a module that keep statistics of their batches."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]
