"""Find the largest batch size that fits into memory: try some steps with each of some sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

from lt_core.callback import Callback
from lt_core.config.parsers import is_number, is_whole
from lt_core.data.leaf import length
from lt_core.data.resize import batch_size_of, batch_size_problems, resized
from lt_core.loops.trial import exchange_loaders, fits_in_memory, given_loaders, loaders_in, trial
from lt_core.model.attribute import Attribute
from lt_core.notices import info, warn
from lt_interface.errors import ConfigError, Problem, choice_problems, raise_problems

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["BatchSizeFinder"]

Mode = Literal["power", "binsearch"]


def _search(fits: Callable[[int], bool], mode: str, size: int, trials: int, most: int) -> tuple[int, int | None]:
    """Return the largest size that fitted, 0 if none did, and the smallest that did not.

    Args:
        fits: Tries a size.
        mode: As of `BatchSizeFinder`.
        size: The first size.
        trials: How many sizes are tried at most.
        most: The largest size that is tried.
    """
    good, bad = 0, None
    size = min(size, most)
    for _ in range(trials):
        if fits(size):
            good = size
            if bad is not None and mode == "power":
                break
            size = min(2 * size, most) if bad is None else (good + bad) // 2
        else:
            bad = size
            if good and mode == "power":
                break
            size = size // 2 if mode == "power" else (good + bad) // 2
        if size in (0, good):
            break
    return good, bad


class BatchSizeFinder(Callback):
    """Callback that finds the largest batch size that fits into memory, and goes on with it.

    It trains, or evaluates, a few steps with each size. The size is set where the module or data module hold it, as
    ``batch_size``; loaders that the call was given are copied with it. All else is afterwards what it was. With several
    ranks the size is each rank's, and one that does not fit on any rank fits on none. A run that is resumed goes on
    with what it found.

    A subclass may call `scale_batch_size` in other hooks, or override it.

    Args:
        mode: ``"power"`` doubles the size until it does not fit; ``"binsearch"`` then halves the interval between the
            largest that did and the smallest that did not.
        steps_per_trial: How many steps are made with each size.
        init_val: The first size.
        max_trials: How many sizes are tried at most.
        batch_arg_name: Where the module or data module, or their hparams, hold the size, such as ``"data.batch_size"``.
        margin: Part of the size that ``"binsearch"`` found that is taken off again, for batches that need more memory.
        max_val: The largest size that is tried. None larger than the dataset is tried either.
        keep_global_batch: Whether an optimizer step of ``fit`` goes on having as many samples as it has now: batches
            are then accumulated, and the size is the largest that fits and divides that number.

    Attributes:
        optimal_batch_size: What was found last; None before.

    Raises:
        ConfigError: If an argument is wrong; all problems at once.

    Example:
        >>> import torch
        >>> from lt_core import Trainer
        >>> from lt_core.demos.boring_classes import BoringModel, RandomDataset
        >>> class Model(BoringModel):
        ...     batch_size = 2
        ...     def train_dataloader(self):
        ...         return torch.utils.data.DataLoader(RandomDataset(32, 64), batch_size=self.batch_size)
        >>> model, finder = Model(), BatchSizeFinder(max_val=16)
        >>> quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        >>> Trainer(max_steps=1, callbacks=[finder], logger=False, **quiet).fit(model)
        >>> model.batch_size, finder.optimal_batch_size
        (16, 16)
    """

    #: What ``mode`` may be.
    SUPPORTED_MODES = get_args(Mode)

    def __init__(
        self,
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
        keep_global_batch: bool = False,
    ) -> None:
        where = type(self).__name__
        problems = choice_problems(f"{where}(mode={mode!r})", mode, get_args(Mode))
        counts = {
            "steps_per_trial": steps_per_trial,
            "init_val": init_val,
            "max_trials": max_trials,
            "max_val": max_val,
        }
        for name, value in counts.items():
            if not is_whole(value) or value < 1:
                rule = "this must be an integer of at least 1"
                problems.append(Problem(f"{where}({name}={value!r})", rule, fix=f"Leave {name} out."))
        if not is_number(margin) or not 0 <= margin < 1:
            rule = "this must be a number from 0 up to below 1"
            problems.append(Problem(f"{where}(margin={margin!r})", rule, fix="Write margin=0.05."))
        if not isinstance(batch_arg_name, str) or not batch_arg_name:
            rule = "this must be the name of an attribute"
            problems.append(Problem(f"{where}(batch_arg_name={batch_arg_name!r})", rule, fix="Leave it out."))
        raise_problems(problems)
        self._mode, self._steps, self._first, self._trials = mode, steps_per_trial, init_val, max_trials
        self._name, self._margin, self._most, self._keeps = batch_arg_name, margin, max_val, keep_global_batch
        self.optimal_batch_size: int | None = None
        self._accumulate: int | None = None
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """Return the size that was found and set, and how many batches are accumulated."""
        if self.optimal_batch_size is None:
            return {}
        return {"batch_size": self.optimal_batch_size, "accumulate": self._accumulate}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what an earlier part of the run found."""
        self.optimal_batch_size, self._accumulate = state_dict.get("batch_size"), state_dict.get("accumulate")
        self._resumed = self.optimal_batch_size is not None

    def search(self, trainer: Trainer, pl_module: LightningModule) -> tuple[int, int | None]:
        """Return the size for each rank, and how many batches to accumulate, if that is to be changed.

        Nothing is set, and all is as before.

        Args:
            trainer: The trainer, inside a call.
            pl_module: The module.

        Raises:
            ConfigError: If the loaders or the attribute make no other size possible, or not even one sample fits.
        """
        where, given = type(self).__name__, given_loaders(trainer)
        attribute = Attribute(self._name, pl_module, trainer.datamodule)
        fixed = attribute.problem(where, "the size needs an attribute") if attribute.found else None
        raise_problems([] if fixed is None else [fixed])
        before, problems = attribute.get(), list[Problem]()

        @contextmanager
        def sized(size: int) -> Iterator[None]:
            if attribute.found:
                attribute.set(size)
            try:
                yield
            finally:
                if attribute.found:
                    attribute.set(before)

        with sized(self._first), trial(trainer) as run:
            loaders, source = loaders_in(run)
            keeps = self._keeps and run.fits
            ranks, together = run.world.data_size, run.strategy.collective_forward or run.plan.sync_batchnorm
        problems += batch_size_problems(loaders, source)
        if ranks > 1 and together:
            rule, fix = "ranks that compute a step together cannot try one that may fail", "Try it with one device."
            problems.append(Problem(where, rule, f"{ranks} ranks", fix))
        now = [batch_size_of(loader) for loader in loaders] if not problems else []
        if given is None:
            missing = attribute.problem(where, f"{source} must take its batch size from the attribute")
            if missing is None and now and self._first not in now:
                rule, fix = "the loader's size must be the attribute's", f"Write batch_size=self.{self._name}."
                missing = Problem(source, rule, f"batch_size={now[0]}", fix)
            problems += [] if missing is None else [missing]
        raise_problems(problems)
        whole = int(before if given is None and is_whole(before) else now[0] or 1) * trainer.accumulate_grad_batches
        lengths = [int(n) // ranks for n in (length(loader.dataset) for loader in loaders) if n != math.inf]
        longest = (min if any(loader.drop_last for loader in loaders) else max)(lengths, default=self._most)
        most = min([self._most, max(longest, 1), *([whole] if keeps else ())])

        def fits(size: int) -> bool:
            with sized(size):
                fitted = fits_in_memory(trainer, self._steps, None if given is None else resized(given, size))
            info(f"{where}: a batch size of {size} {'fits' if fitted else 'does not fit into memory'}.")
            return fitted

        size, failed = _search(fits, self._mode, self._first, self._trials, most)
        if not size:
            rule, fix = "some batch size must fit into memory", "Use a smaller model, or a device with more memory."
            raise ConfigError(Problem(where, rule, f"none down to {failed}", fix))
        if self._mode == "binsearch" and failed is not None:
            size = max(1, int(size * (1 - self._margin)))
        if not keeps:
            return size, None
        size = next(divisor for divisor in range(size, 0, -1) if whole % divisor == 0)
        return size, whole // size

    def scale_batch_size(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find a size and go on with it; call it in hooks in which no batch is running.

        Args:
            trainer: The trainer, inside a call.
            pl_module: The module.
        """
        if trainer.fast_dev_run:
            warn(f"{type(self).__name__}: fast_dev_run tries no batch sizes.")
            return
        self.optimal_batch_size, self._accumulate = self.search(trainer, pl_module)
        self.apply(trainer, pl_module, trainer.datamodule)
        self._exchange(trainer)

    def apply(self, trainer: Trainer, *owners: Any) -> None:
        """Set the attribute, and how many batches are accumulated.

        Args:
            trainer: The trainer.
            *owners: Module and data module.
        """
        attribute = Attribute(self._name, *owners)
        if attribute.found:
            attribute.set(self.optimal_batch_size)
        if self._accumulate is not None:
            trainer.accumulate_grad_batches = self._accumulate
        more = "" if self._accumulate is None else f", and {self._accumulate} batches make a step"
        info(f"{type(self).__name__}: {self._name} is {self.optimal_batch_size} now{more}.")

    def _exchange(self, trainer: Trainer) -> None:
        """Let the running call take its data in batches of the size that was found."""
        given, size = given_loaders(trainer), self.optimal_batch_size
        exchange_loaders(trainer, None if given is None or size is None else resized(given, size))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the size; a run that is resumed goes on with the one that it had."""
        if trainer.resumed_from is None or not self._resumed:
            self.scale_batch_size(trainer, pl_module)
        else:
            self.apply(trainer, pl_module, trainer.datamodule)
            self._exchange(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the size where the call is ``validate``."""
        if trainer.state.fn == "validate":
            self.scale_batch_size(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the size for the test."""
        self.scale_batch_size(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the size for prediction."""
        self.scale_batch_size(trainer, pl_module)
