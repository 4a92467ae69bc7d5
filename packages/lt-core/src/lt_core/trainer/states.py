"""What a trainer is doing, under the path that users' imports name."""

from lt_core.state.progress import RunningStage, TrainerFn, TrainerState, TrainerStatus

__all__ = ["RunningStage", "TrainerFn", "TrainerState", "TrainerStatus"]
