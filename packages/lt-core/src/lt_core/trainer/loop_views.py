"""The loops by the names that other code reads their counts under: small views, on which limits alone are set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lt_core.data.sources import feed_of, has_loader
from lt_core.state.stage import PREDICT, TRAIN, VALIDATE

if TYPE_CHECKING:
    from lt_core.trainer.view import TrainerView

__all__ = ["Counts", "EpochLoop", "EvaluationLoop", "FitLoop", "PredictLoop"]


def _refusal(name: str) -> AttributeError:
    return AttributeError(
        f"Trainer.fit_loop: its counts are shown, not changed. Got {name}. Step the optimizers that self.optimizers() "
        "returns, whose steps the trainer counts; to begin at other counts, give a checkpoint as ckpt_path."
    )


class _Shown:
    """Values that are read and never set, each by its name.

    Args:
        values: The values.
    """

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _refusal(f"{name} = {value!r}")

    def __getattr__(self, name: str) -> Any:
        raise _refusal(name)


class Count(_Shown):
    """How many epochs or batches came how far.

    Attributes:
        ready: Those that were begun.
        completed: Those that are done.
    """

    ready: int
    completed: int

    @property
    def started(self) -> int:
        """Return those that were begun."""
        return self.ready

    @property
    def processed(self) -> int:
        """Return those that are done."""
        return self.completed


class Counts(_Shown):
    """Counts of the whole training, and of its running part.

    Attributes:
        total: Since training began, resumed parts included.
        current: Of the running epoch's batches; of epochs the same as the total.
        is_last_batch: Of batches: whether the one that was begun last is the last of its epoch.
    """

    total: Count
    current: Count
    is_last_batch: bool


class _View:
    """View of a trainer's counts.

    Args:
        trainer: The trainer.
    """

    _name = ""
    _limits: tuple[str, ...] = ()  # what may be set: the trainer's own
    _trainer: TrainerView

    def __init__(self, trainer: TrainerView) -> None:
        self.__dict__["_trainer"] = trainer

    @property
    def trainer(self) -> TrainerView:
        """Return the trainer."""
        return self._trainer

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._limits:
            return setattr(self._trainer, name, value)
        raise _refusal(f"{self._name}.{name} = {value!r}")

    def __getattr__(self, name: str) -> Any:
        shown = ", ".join(n for n in dir(type(self)) if not n.startswith("_"))
        raise AttributeError(f"Trainer.{self._name} has no attribute {name!r}. It shows {shown}.")


class FitLoop(_View):
    """Counts of training, and its limits."""

    _name = "fit_loop"
    _limits = ("max_epochs", "min_epochs", "max_steps")

    @property
    def max_epochs(self) -> int:
        """Return after how many epochs training stops; -1 for no limit."""
        return self._trainer.max_epochs

    @property
    def min_epochs(self) -> int:
        """Return how many epochs are trained at least."""
        return self._trainer.min_epochs

    @property
    def max_steps(self) -> int:
        """Return after how many optimizer steps training stops; -1 for no limit."""
        return self._trainer.max_steps

    @property
    def max_batches(self) -> int | float:
        """Return how many batches an epoch has."""
        return self._trainer.num_training_batches

    @property
    def epoch_progress(self) -> Counts:
        """Return how many epochs were begun and done."""
        progress = self._trainer._progress
        count = Count(ready=progress.epoch + (not progress.epoch_closed), completed=progress.epoch)
        return Counts(total=count, current=count)

    @property
    def epoch_loop(self) -> EpochLoop:
        """Return the counts of the running epoch."""
        return EpochLoop(self._trainer)

    def setup_data(self) -> None:
        """Load the training data now, as in ``configure_optimizers``, so that its loader and size can be asked for."""
        trainer = self._trainer
        if trainer._run is not None and trainer._run.fits:
            feed_of(trainer._run, TRAIN)

    @property
    def batch_idx(self) -> int:
        """Return the running batch's index in its epoch."""
        return self.epoch_loop.batch_idx

    @property
    def total_batch_idx(self) -> int:
        """Return the running batch's index over all epochs."""
        return self.epoch_loop.total_batch_idx


class EpochLoop(_View):
    """Counts of the running training epoch."""

    _name = "fit_loop.epoch_loop"
    _limits = ("max_steps",)

    @property
    def max_steps(self) -> int:
        """Return after how many optimizer steps training stops; -1 for no limit."""
        return self._trainer.max_steps

    @property
    def batch_progress(self) -> Counts:
        """Return how many batches were begun and done."""
        trainer = self._trainer
        progress, run = trainer._progress, trainer._run
        inside = run is not None and run.metrics.train.batch is not None and not run.loop.at_boundary
        done, begun = progress.batch, progress.batch + inside
        total = progress.batches + (0 if progress.epoch_closed else done)
        return Counts(
            total=Count(ready=total + inside, completed=total),
            current=Count(ready=begun, completed=done),
            is_last_batch=run is not None and run.is_last_batch(begun - 1) if begun else progress.batches > 0,
        )

    @property
    def val_loop(self) -> EvaluationLoop:
        """Return the sizes of the validation inside of training."""
        return self._trainer.validate_loop

    @property
    def batch_idx(self) -> int:
        """Return the running batch's index in its epoch."""
        return self.batch_progress.current.ready - 1

    @property
    def total_batch_idx(self) -> int:
        """Return the running batch's index over all epochs."""
        return self.batch_progress.total.ready - 1

    @property
    def global_step(self) -> int:
        """Return in how many batches an optimizer stepped."""
        return self._trainer._progress.step

    @property
    def _batches_that_stepped(self) -> int:
        return self._trainer._progress.step


class DataSource(_View):
    """Whether there is something to validate with, before its loaders are made."""

    _name = "validate_loop._data_source"

    def is_defined(self) -> bool:
        """Return whether a loader of validation was given, or a module or datamodule makes one."""
        run = self._trainer._run
        return run is not None and has_loader(run, VALIDATE)


class EvaluationLoop(_View):
    """Sizes of an evaluation.

    Args:
        trainer: The trainer.
        name: The loop's name, for errors.
        sizes: The trainer's attribute that has each loader's number of batches.
    """

    def __init__(self, trainer: TrainerView, name: str, sizes: str) -> None:
        super().__init__(trainer)
        self.__dict__.update(_name=name, _sizes=sizes)

    @property
    def _data_source(self) -> DataSource:
        return DataSource(self._trainer)

    @property
    def max_batches(self) -> list[int | float]:
        """Return each loader's batches."""
        found: list[int | float] = getattr(self._trainer, self._sizes)
        return found

    @property
    def num_dataloaders(self) -> int:
        """Return how many loaders there are."""
        return len(self.max_batches)


class PredictLoop(EvaluationLoop):
    """Sizes of a prediction, and what is known of its batches while it runs."""

    def __init__(self, trainer: TrainerView) -> None:
        super().__init__(trainer, "predict_loop", "num_predict_batches")

    @property
    def current_batch_indices(self) -> list[int]:
        """Return the dataset indices of the running batch; empty where they are unknown, as of an iterable dataset."""
        feed = self._trainer._feed(PREDICT)
        return [] if feed is None else feed.indices

    @property
    def epoch_batch_indices(self) -> list[list[list[int]]]:
        """Return the indices of each loader's batches so far, if a callback has ``keeps_predictions``."""
        run = self._trainer._run
        return [] if run is None else run.loop.predict.indices

    @property
    def predictions(self) -> list[Any]:
        """Return what predict_step returned so far, on the CPU, if it is kept: of several loaders, a list for each."""
        run = self._trainer._run
        kept = [] if run is None else run.loop.predict.predictions
        return kept[0] if len(kept) == 1 else kept
