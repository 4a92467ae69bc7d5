"""Define what every progress bar shares: whether it is on, what it counts, what it shows."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from lt_core.callback import Callback
from lt_core.notices import warn
from lt_interface.abilities import fact

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["ProgressBar"]


def _sum(batches: float | Iterable[float] | None) -> float:
    return batches if isinstance(batches, int | float) else sum(batches or ())


class ProgressBar(Callback):
    """Base of progress bars: subclass it and draw in the hooks.

    Only rank 0 shows a bar: on others ``setup`` calls ``disable``.
    """

    # After the module's own hook, so that what it logs at the epoch's end is seen.
    monitoring: ClassVar[bool] = True
    role: ClassVar[str] = "progress bar"

    # On the class, so that a subclass need not call __init__.
    _trainer: weakref.ref[Trainer] | None = None
    _is_enabled: bool = True
    _overlap_reported: bool = False
    _current_eval_dataloader_idx: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trainer": None}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the trainer; hide the bar on all ranks but the first."""
        self._trainer = weakref.ref(trainer)
        if not trainer.is_global_zero:
            self.disable()

    @property
    def trainer(self) -> Trainer:
        """Return the trainer that this bar belongs to.

        Raises:
            RuntimeError: If no run has begun.
        """
        trainer = None if self._trainer is None else self._trainer()
        if trainer is None:
            raise RuntimeError(f"{type(self).__name__}.trainer: the bar has no trainer before its setup hook runs.")
        return trainer

    @property
    def is_enabled(self) -> bool:
        """Return whether the bar is shown."""
        return self._is_enabled

    @property
    def is_disabled(self) -> bool:
        """Return whether the bar is hidden."""
        return not self.is_enabled

    def enable(self) -> None:
        """Show the bar."""
        self._is_enabled = True

    def disable(self) -> None:
        """Hide the bar."""
        self._is_enabled = False

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print without disturbing the bar; takes what ``print`` takes.

        Args:
            *args: What to print.
            sep: What stands between two of them.
            **kwargs: As for ``print``.
        """
        print(*args, sep=sep, **kwargs)

    @property
    def sanity_check_description(self) -> str:
        """Return the title of the sanity check."""
        return "Sanity check"

    @property
    def train_description(self) -> str:
        """Return the title of training, to which the epoch is added."""
        return "Epoch"

    @property
    def validation_description(self) -> str:
        """Return the title of validation."""
        return "Validation"

    @property
    def test_description(self) -> str:
        """Return the title of test."""
        return "Test"

    @property
    def predict_description(self) -> str:
        """Return the title of prediction."""
        return "Predict"

    @property
    def total_train_batches(self) -> float:
        """Return the batches of an epoch; infinity if unknown."""
        return self.trainer.num_training_batches

    @property
    def total_val_batches(self) -> float:
        """Return the batches of validation over all loaders."""
        trainer = self.trainer
        return _sum(trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches)

    @property
    def total_test_batches(self) -> float:
        """Return the batches of test over all loaders."""
        return _sum(self.trainer.num_test_batches)

    @property
    def total_predict_batches(self) -> float:
        """Return the batches of prediction over all loaders."""
        return _sum(self.trainer.num_predict_batches)

    @property
    def total_val_batches_current_dataloader(self) -> float:
        """Return the batches of the loader that is validated."""
        trainer = self.trainer
        return self._of_current(trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches)

    @property
    def total_test_batches_current_dataloader(self) -> float:
        """Return the batches of the loader that is tested."""
        return self._of_current(self.trainer.num_test_batches)

    @property
    def total_predict_batches_current_dataloader(self) -> float:
        """Return the batches of the loader that is predicted."""
        return self._of_current(self.trainer.num_predict_batches)

    def _of_current(self, batches: Any) -> float:
        found: float = batches if isinstance(batches, int | float) else batches[self._current_eval_dataloader_idx or 0]
        return found

    def has_dataloader_changed(self, dataloader_idx: int) -> bool:
        """Return whether a batch comes from another loader than the one before; ask once in each batch's start.

        Args:
            dataloader_idx: The loader of the batch.
        """
        before, self._current_eval_dataloader_idx = self._current_eval_dataloader_idx, dataloader_idx
        return before != dataloader_idx

    def reset_dataloader_idx_tracker(self) -> None:
        """Forget the loader, at the end of an evaluation."""
        self._current_eval_dataloader_idx = None

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what the bar shows: the run's version, and all that was logged with ``prog_bar=True``.

        Override it to add or drop something.
        """
        shown: dict[str, Any] = {}
        version = fact(trainer.loggers[0], "version") if trainer.loggers else None
        if version not in (None, ""):
            shown["v_num"] = version[-4:] if isinstance(version, str) else version
        logged = trainer.shown_metrics()
        if not self._overlap_reported and not shown.keys().isdisjoint(logged):
            self._overlap_reported = True
            warn("The progress bar shows the run's version as v_num: a logged metric of that name takes its place.")
        return {**shown, **logged}
