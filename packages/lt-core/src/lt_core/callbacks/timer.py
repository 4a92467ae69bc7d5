"""Measure a run's wall-clock time and stop training when it is used up."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from lt_core.callback import Callback
from lt_core.config.parsers import FlagError, time_span
from lt_core.notices import info
from lt_core.state.agreement import SharedAlarm
from lt_core.state.progress import RunningStage
from lt_interface.errors import ConfigError, Problem, nearest

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["Timer"]


class Timer(Callback):
    """Callback that times training, validation and test, and stops training when its time is used up.

    A checkpoint keeps what was used, so that a resumed run goes on with the same budget. Its times are those of a
    ``stage``: ``"train"``, ``"validate"``, ``"test"``, ``"predict"`` or ``"sanity_check"``.

    Attributes:
        time_is_up: Whether it has stopped the running fit, or the last one.

    Args:
        duration: The budget: ``"DD:HH:MM:SS"``, a timedelta or a dict of its arguments; None never stops.
        interval: Look at the clock at each ``"step"`` or each ``"epoch"``.
        verbose: Whether the stop is reported.

    Raises:
        ConfigError: If an argument cannot be read.
    """

    role: ClassVar[str] = "timer"

    def __init__(
        self, duration: str | timedelta | dict[str, int] | None = None, interval: str = "step", verbose: bool = True
    ) -> None:
        if interval not in ("step", "epoch"):
            fix = nearest(str(interval), ("step", "epoch"))
            raise ConfigError(Problem(f"Timer(interval={interval!r})", 'must be "step" or "epoch"', fix=fix))
        try:
            self._duration = None if duration is None else time_span(duration).total_seconds()
        except FlagError as refused:
            raise ConfigError(refused.problem(f"Timer(duration={duration!r})")) from None
        self._interval = str(interval)
        self._verbose = verbose
        self._start: dict[RunningStage, float | None] = dict.fromkeys(RunningStage)
        self._end: dict[RunningStage, float | None] = dict.fromkeys(RunningStage)
        self._offset = 0.0
        self._alarm = SharedAlarm(self._seconds_left)
        self.time_is_up = False

    def start_time(self, stage: str = RunningStage.TRAINING) -> float | None:
        """Return when a stage began, in seconds of the monotonic clock; None if it did not."""
        return self._start[RunningStage(stage)]

    def end_time(self, stage: str = RunningStage.TRAINING) -> float | None:
        """Return when a stage ended, in seconds of the monotonic clock; None if it did not."""
        return self._end[RunningStage(stage)]

    def time_elapsed(self, stage: str = RunningStage.TRAINING) -> float:
        """Return how many seconds a stage took so far, those before a resume included."""
        stage = RunningStage(stage)
        start, end = self._start[stage], self._end[stage]
        before = self._offset if stage is RunningStage.TRAINING else 0.0
        if start is None:
            return before
        return (time.monotonic() if end is None else end) - start + before

    def time_remaining(self, stage: str = RunningStage.TRAINING) -> float | None:
        """Return how many seconds of the budget are left; None without a budget."""
        return None if self._duration is None else self._duration - self.time_elapsed(stage)

    def state_dict(self) -> dict[str, Any]:
        """Return the time used by each stage."""
        return {"time_elapsed": {stage.value: self.time_elapsed(stage) for stage in RunningStage}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the time that training has used."""
        self._offset = state_dict.get("time_elapsed", {}).get(RunningStage.TRAINING.value, 0.0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once where a resumed run has used up its time."""
        self.time_is_up = False
        if self._duration is not None:
            self._start[RunningStage.TRAINING] = self._end[RunningStage.TRAINING] = None
            self._alarm = SharedAlarm(self._seconds_left)
            self._look(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of training."""
        self._begin(RunningStage.TRAINING)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training."""
        self._end[RunningStage.TRAINING] = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of validation."""
        self._begin(RunningStage.VALIDATING)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of validation."""
        self._end[RunningStage.VALIDATING] = time.monotonic()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of test."""
        self._begin(RunningStage.TESTING)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of test."""
        self._end[RunningStage.TESTING] = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock, if it is looked at at each step."""
        if self._duration is not None and self._interval == "step":
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the clock, if it is looked at at each epoch."""
        if self._duration is not None and self._interval == "epoch":
            self._alarm.reset()
            self._look(trainer)

    def _begin(self, stage: RunningStage) -> None:
        self._start[stage], self._end[stage] = time.monotonic(), None

    def _seconds_left(self) -> float:
        left = self.time_remaining()
        return math.inf if left is None else left

    def _look(self, trainer: Trainer) -> None:
        if self._alarm.rings(trainer) and not trainer.should_stop:
            self.time_is_up = True
            trainer.request_stop(self, f"max_time={timedelta(seconds=self._duration or 0)} is used up")
            if self._verbose:
                info(f"Timer: the time is used up after {timedelta(seconds=int(self.time_elapsed()))}. Training stops.")
