"""The four stages of a trainer: one row each, for everything that is named after a stage."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from lt_core.state.progress import RunningStage, TrainerFn

__all__ = ["PREDICT", "STAGES", "TEST", "TRAIN", "VALIDATE", "Stage", "stage_of"]


@dataclass(frozen=True)
class Stage:
    """Names that belong to one stage.

    Attributes:
        fn: The trainer's method that begins with this stage.
        running: What the trainer's state says while the stage's loop runs; its word names the stage's data as well.
        step: The module's method for a batch.
        loader: The hook that returns the loaders.
        limit: The flag that limits the batches.
        hook: The word in the names of the stage's hooks, as in ``on_validation_start``.
        args: What the step is called with; all but the batch may be left out.
    """

    fn: TrainerFn
    running: RunningStage
    step: str
    loader: str
    limit: str
    hook: str
    args: tuple[str, ...] = ("batch", "batch_idx", "dataloader_idx")

    @cached_property
    def word(self) -> str:
        """Return the word under which the stage's data and metrics are kept: train, validate, test or predict."""
        return str(self.running)

    @property
    def fetching(self) -> str:
        """Return how a profiler's action is called that waits for the stage's next batch; Lightning's name for it."""
        names = {"train": "[_TrainingEpochLoop].train_dataloader", "predict": "[_PredictionLoop].predict"}
        return f"{names.get(self.prefix, f'[_EvaluationLoop].{self.prefix}')}_next"

    @property
    def prefix(self) -> str:
        """Return the word in the loader's name: train, val, test or predict."""
        return self.loader.removesuffix("_dataloader")


TRAIN = Stage(
    *(TrainerFn.FITTING, RunningStage.TRAINING, "training_step", "train_dataloader", "limit_train_batches", "train"),
    args=("batch", "batch_idx"),
)
VALIDATE = Stage(
    *(TrainerFn.VALIDATING, RunningStage.VALIDATING, "validation_step", "val_dataloader", "limit_val_batches"),
    hook="validation",
)
TEST = Stage(TrainerFn.TESTING, RunningStage.TESTING, "test_step", "test_dataloader", "limit_test_batches", hook="test")
PREDICT = Stage(
    *(TrainerFn.PREDICTING, RunningStage.PREDICTING, "predict_step", "predict_dataloader", "limit_predict_batches"),
    hook="predict",
)
STAGES = (TRAIN, VALIDATE, TEST, PREDICT)

_BY_WORD = {word: s for s in STAGES for word in (str(s.fn), s.word, s.prefix, s.hook)}


def stage_of(word: str) -> Stage:
    """Return the stage that a word names: that of the method, the loop, the loader or the hooks.

    Args:
        word: Such as ``"fit"`` or ``"train"``; ``"validate"``, ``"val"`` or ``"validation"``.

    Raises:
        KeyError: If no stage has that word.

    Example:
        >>> stage_of("val").step
        'validation_step'
    """
    return _BY_WORD[str(word)]
