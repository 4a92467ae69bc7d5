"""The loops by the names that other code reads their counts under: small views, on which limits alone are set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lt_core.data.sources import feed_of
from lt_core.state.stage import PREDICT, TRAIN

if TYPE_CHECKING:
    from lt_core.trainer.view import TrainerView

__all__ = ["Counts", "EpochLoop", "EvaluationLoop", "FitLoop", "PredictLoop"]


@dataclass(frozen=True)
class Count:
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


@dataclass(frozen=True)
class Counts:
    """Counts of the whole training, and of its running part.

    Attributes:
        total: Since training began, resumed parts included.
        current: Of the running epoch's batches; of epochs the same as the total.
    """

    total: Count
    current: Count


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

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._limits:
            return setattr(self._trainer, name, value)
        raise AttributeError(f"Trainer.{self._name}.{name}: this is a view of the trainer. Set trainer.{name}.")

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
    def epoch_progress(self) -> Counts:
        """Return how many epochs were begun and done."""
        progress = self._trainer._progress
        count = Count(progress.epoch + (not progress.epoch_closed), progress.epoch)
        return Counts(count, count)

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
        done = progress.batch
        total = progress.batches + (0 if progress.epoch_closed else done)
        return Counts(Count(total + inside, total), Count(done + inside, done))

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
