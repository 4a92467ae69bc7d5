"""Find a learning rate or a batch size in a call of its own, which leaves nothing behind but what it found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from lt_core.callbacks.batch_size_finder import BatchSizeFinder
from lt_core.callbacks.lr_finder import LearningRateFinder, LRFinder
from lt_core.notices import info, warn
from lt_core.run.checks import read_inputs
from lt_core.run.ending import ended, reason_of
from lt_core.run.main import main
from lt_core.run.outcome import receive
from lt_core.run.prepare import prepare
from lt_core.state import rng
from lt_core.state.kept import Kept
from lt_core.state.progress import Progress, TrainerFn, TrainerState
from lt_interface.errors import Problem, choice_problems, raise_problems

if TYPE_CHECKING:
    from lt_core.datamodule import LightningDataModule
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["Tuner"]

_METHODS = tuple(str(fn) for fn in TrainerFn)


class Tuner:
    """Search for a learning rate, or a batch size, with the devices, strategy and precision of a trainer.

    The trainer, its history and its folders are left alone, and module and data are afterwards what they were, but for
    the attribute that holds what was found.

    Args:
        trainer: The trainer; it may have fitted before.

    Example:
        >>> from lt_core import Trainer
        >>> from lt_core.demos.boring_classes import BoringModel
        >>> class Model(BoringModel):
        ...     lr = 0.5
        ...     def configure_optimizers(self):
        ...         import torch
        ...         return torch.optim.SGD(self.parameters(), lr=self.lr)
        >>> model, tuner = Model(), Tuner(Trainer(max_epochs=1, logger=False, enable_checkpointing=False))
        >>> found = tuner.lr_find(model, num_training=30)
        >>> model.lr == found.suggestion()
        True
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def lr_find(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        method: str = "fit",
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
        weights_only: bool | None = None,
    ) -> LRFinder | None:
        """Return the losses by learning rate, and set the module's attribute to what they suggest.

        Args:
            model: The module.
            train_dataloaders: What fit takes.
            val_dataloaders: What fit takes; nothing is validated.
            dataloaders: Refused: rates are tried in training.
            datamodule: Holds the loaders instead.
            method: ``"fit"``.
            min_lr: As for `LearningRateFinder`, like all that follow.
            max_lr: The highest rate.
            num_training: How many rates are tried.
            mode: ``"exponential"`` or ``"linear"``.
            early_stop_threshold: Ends the search once the loss is that many times the lowest one.
            update_attr: Whether to set the attribute.
            attr_name: Its name; ``lr`` or ``learning_rate`` if left out.
            weights_only: Has no effect.

        Returns:
            The losses and the suggestion; None in a fast development run.

        Raises:
            ConfigError: If an argument is wrong, or the module cannot be trained or set so.
        """
        where = "Tuner.lr_find"
        problems = []
        if method != "fit":
            fix = 'Leave method out, or write method="fit".'
            problems.append(Problem(f"{where}(method={method!r})", "rates are tried in training", fix=fix))
        problems += _loader_problems(where, method, train_dataloaders, val_dataloaders, dataloaders, datamodule)
        raise_problems(problems)
        settings = (min_lr, max_lr, num_training, mode, early_stop_threshold, update_attr, attr_name)
        finder = LearningRateFinder(*settings)
        given = read_inputs(model, train_dataloaders, val_dataloaders, datamodule)
        if self._trainer.fast_dev_run:
            warn(f"{where}: fast_dev_run tries no learning rates.")
            return None
        found: LRFinder = self._try(finder.search, "fit", model, train_dataloaders, datamodule, val_dataloaders)
        rate = found.suggestion() if update_attr else None
        if rate is not None:
            finder.apply(rate, given.module, given.datamodule)
        return found

    def scale_batch_size(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        method: str = "fit",
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
        keep_global_batch: bool = False,
    ) -> int | None:
        """Return the largest batch size that fits into memory, and set the attribute that holds it.

        Loaders that are given are left as they are; give new ones to fit.

        Args:
            model: The module.
            train_dataloaders: What fit takes.
            val_dataloaders: What fit takes; nothing is validated.
            dataloaders: What the other methods take.
            datamodule: Holds the loaders instead.
            method: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``: whose step is tried.
            mode: As for `BatchSizeFinder`, like all that follow.
            steps_per_trial: How many steps are made with each size.
            init_val: The first size.
            max_trials: How many sizes are tried at most.
            batch_arg_name: Where the size is held.
            margin: Part that is taken off what ``"binsearch"`` found.
            max_val: The largest size that is tried.
            keep_global_batch: Whether to accumulate batches, so that a step goes on having as many samples.

        Returns:
            The size; None in a fast development run.

        Raises:
            ConfigError: If an argument is wrong, or the loaders cannot have another size.
        """
        where = "Tuner.scale_batch_size"
        problems = choice_problems(f"{where}(method={method!r})", method, _METHODS)
        problems += _loader_problems(where, method, train_dataloaders, val_dataloaders, dataloaders, datamodule)
        raise_problems(problems)
        settings = (mode, steps_per_trial, init_val, max_trials, batch_arg_name, margin, max_val, keep_global_batch)
        finder = BatchSizeFinder(*settings)
        loaders = train_dataloaders if method == "fit" else dataloaders
        given = read_inputs(model, loaders, val_dataloaders, datamodule)
        if self._trainer.fast_dev_run:
            warn(f"{where}: fast_dev_run tries no batch sizes.")
            return None
        found = self._try(finder.search, method, model, loaders, datamodule, val_dataloaders)
        finder.load_state_dict(dict(zip(("batch_size", "accumulate"), found, strict=True)))
        finder.apply(self._trainer, given.module, given.datamodule)
        return finder.optimal_batch_size

    def _try(self, search: Callable[..., Any], method: str, model: Any, loaders: Any, datamodule: Any, val: Any) -> Any:
        """Return what a search finds in a call of a copy of the trainer, in all its processes; put everything back."""
        trainer, strategy = copy.copy(self._trainer), self._trainer.strategy
        vars(trainer).update(
            trainer._trying(),
            _trial=search,
            _progress=Progress(),
            state=TrainerState(),
            _journal=None,
            _own_ckpt_path=None,
            _given={**trainer._given, "resume_from_checkpoint": None},
        )
        given = read_inputs(model, loaders, val, datamodule)
        modules = given.module.modules() if isinstance(given.module, nn.Module) else ()
        kept = Kept([*modules, given.datamodule])
        try:
            with rng.isolate(trainer.accelerator, trainer.strategy.device):
                request = prepare(trainer, TrainerFn(method), model, loaders, datamodule, None, val)
                with ended(request):
                    outcome = trainer._launcher.launch(main, request, request.plan, trainer._cluster)
                    return receive(request, outcome)
        except BaseException as error:
            reason = reason_of(error)
            if reason.startswith("signal: "):
                info(f"`Tuner` stopped: {reason.removeprefix('signal: ')}. The model and its data are as they were.")
            raise
        finally:
            kept.restore()
            strategy.trainer = self._trainer


def _loader_problems(where: str, method: str, train: Any, val: Any, loaders: Any, datamodule: Any) -> list[Problem]:
    """Return which loaders the method does not take."""
    problems = []
    wrong = {"dataloaders": loaders} if method == "fit" else {"train_dataloaders": train, "val_dataloaders": val}
    for name, value in wrong.items():
        if value is not None:
            fix = "Write train_dataloaders=..." if method == "fit" else "Write dataloaders=..."
            rule = f"Trainer.{method} takes no {name}"
            problems.append(Problem(f"{where}({name}=...)", rule, f"method={method!r}", f"{fix}."))
    return problems
