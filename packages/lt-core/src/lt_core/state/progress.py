"""What a run counts and what it is doing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

__all__ = ["Progress", "RunningStage", "TrainerFn", "TrainerState", "TrainerStatus"]


class TrainerStatus(str, Enum):
    """How far a call of the trainer is."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"

    @property
    def stopped(self) -> bool:
        """Return whether a call has ended, well or not."""
        return self in (TrainerStatus.FINISHED, TrainerStatus.INTERRUPTED)

    __str__ = str.__str__


class TrainerFn(str, Enum):
    """The public methods that run loops."""

    FITTING = "fit"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"

    __str__ = str.__str__


class RunningStage(str, Enum):
    """What the loop does at this moment."""

    TRAINING = "train"
    SANITY_CHECKING = "sanity_check"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"

    __str__ = str.__str__

    @property
    def evaluating(self) -> bool:
        """Return whether this is validation or test."""
        return self in (RunningStage.SANITY_CHECKING, RunningStage.VALIDATING, RunningStage.TESTING)


@dataclass
class TrainerState:
    """What the trainer is doing: how far, for which method, in which stage."""

    status: TrainerStatus = TrainerStatus.INITIALIZING
    fn: TrainerFn | None = None
    stage: RunningStage | None = None

    @property
    def finished(self) -> bool:
        """Return whether the last call ended well."""
        return self.status is TrainerStatus.FINISHED

    @property
    def stopped(self) -> bool:
        """Return whether no call runs any more: the last one ended, well or not."""
        return self.status.stopped


@dataclass
class Progress:
    """Counts of completed things.

    Attributes:
        epoch: Completed epochs.
        batch: Completed batches of the running epoch.
        step: Batches in which at least one optimizer stepped.
        samples: Samples handed to training_step, over all ranks.
        epoch_closed: Whether no epoch is open: the next batch begins one.
        batches: Completed batches of all closed epochs.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    samples: int = 0
    epoch_closed: bool = True
    batches: int = 0

    def abandon_epoch(self) -> None:
        """Forget an epoch that was left open: the next batch begins it anew."""
        self.epoch_closed, self.batch = True, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the counters."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over counters; keys this version does not know are left alone."""
        for key in asdict(self):
            if key in state:
                setattr(self, key, state[key])
