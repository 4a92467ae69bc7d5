"""Stop training when a metric no longer improves."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lt_core.callback import Callback
from lt_core.callbacks.monitored import MonitorError, acts_at_epoch_end, is_real_fit, snapshot
from lt_core.metrics.absent import missing
from lt_core.notices import info, warn
from lt_core.state.agreement import from_rank_zero
from lt_interface.errors import Problem, choice_problems, raise_problems

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["EarlyStopping", "EarlyStoppingReason"]

_KEPT = ("wait_count", "stopped_epoch", "best_score", "stopping_reason", "stopping_reason_message")


class EarlyStoppingReason(str, Enum):
    """Reasons for which training was stopped."""

    NOT_STOPPED = "not_stopped"
    STOPPING_THRESHOLD = "stopping_threshold"
    DIVERGENCE_THRESHOLD = "divergence_threshold"
    PATIENCE_EXHAUSTED = "patience_exhausted"
    NON_FINITE_METRIC = "non_finite_metric"

    __str__ = str.__str__


class EarlyStopping(Callback):
    """Callback that stops training when a metric stopped improving, reached a goal, diverged or is no longer finite.

    A stop that has to wait, as for ``min_epochs``, is taken back where the metric improves meanwhile.
    The metric is looked at once after each validation, or at each epoch's end where validation
    runs once an epoch or not at all. Patience counts these looks, not epochs.

    Args:
        monitor: The metric's name.
        min_delta: The least change that counts as an improvement.
        patience: How many looks without improvement are waited for.
        verbose: Whether each improvement and the stop are reported.
        mode: ``"min"`` or ``"max"``: which way is better.
        strict: Whether a missing metric is an error; else a warning.
        check_finite: Whether NaN or infinity stops training.
        stopping_threshold: Stop as soon as the metric is better than this.
        divergence_threshold: Stop as soon as the metric is worse than this.
        check_on_train_epoch_end: Whether to look at the epoch's end and not after validation;
            None decides by where validation runs.
        log_rank_zero_only: Whether the other ranks keep quiet.

    Raises:
        ConfigError: If an argument is out of range.
    """

    monitoring: ClassVar[bool] = True
    #: By mode, the function that compares a value with the best one.
    mode_dict: ClassVar[dict[str, Any]] = {"min": torch.lt, "max": torch.gt}

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        problems = choice_problems(f"EarlyStopping(mode={mode!r})", mode, self.mode_dict)
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 0:
            problems.append(Problem(f"EarlyStopping(patience={patience!r})", "must be a whole number of at least 0"))
        if not isinstance(monitor, str) or not monitor:
            problems.append(Problem(f"EarlyStopping(monitor={monitor!r})", "must be the name of a metric"))
        raise_problems(problems)
        self.monitor: str = monitor
        self.patience = patience
        self.verbose = verbose
        self.mode = mode
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.log_rank_zero_only = log_rank_zero_only
        self.min_delta = abs(min_delta) if mode == "max" else -abs(min_delta)
        self.wait_count = 0
        self.stopped_epoch = 0
        self.best_score = torch.tensor(math.inf if mode == "min" else -math.inf)
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None
        self._check_on_train_epoch_end = check_on_train_epoch_end

    @property
    def state_key(self) -> str:
        """Return a key in which other monitors or modes differ."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    @property
    def monitor_op(self) -> Any:
        """Return the comparison that says whether its first argument is better."""
        return self.mode_dict[self.mode]

    def state_dict(self) -> dict[str, Any]:
        """Return the count, the best score and the reason."""
        return {name: getattr(self, name) for name in _KEPT} | {"stopping_reason": str(self.stopping_reason)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over count and best score; a stop that has happened does not stop the resumed run.

        Arguments are this object's own: a run may be resumed with more patience.
        """
        self.wait_count = state_dict["wait_count"]
        self.stopped_epoch = state_dict["stopped_epoch"]
        self.best_score = torch.as_tensor(state_dict["best_score"])
        self.stopping_reason = EarlyStoppingReason(state_dict.get("stopping_reason", "not_stopped"))
        self.stopping_reason_message = state_dict.get("stopping_reason_message")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the metric, where that is the place."""
        if not self._should_skip_check(trainer) and self._acts_at_epoch_end(trainer):
            self._run_early_stopping_check(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the metric, where that is the place."""
        if not self._should_skip_check(trainer) and not self._acts_at_epoch_end(trainer):
            self._run_early_stopping_check(trainer)

    def _acts_at_epoch_end(self, trainer: Trainer) -> bool:
        return acts_at_epoch_end(trainer, self._check_on_train_epoch_end, self.monitor)

    def _should_skip_check(self, trainer: Trainer) -> bool:
        """Return whether this is no moment to look; a subclass may skip more, alike on all ranks."""
        return not is_real_fit(trainer)

    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        """Look at the metric and ask for a stop, or withdraw what was asked for; every rank calls it."""
        logs = dict(trainer.callback_metrics)
        found = logs.pop(self.monitor, None)
        current = from_rank_zero(trainer, None if found is None else snapshot(found))
        if current is not None:
            logs[self.monitor] = current
        try:
            valid = self._validate_condition_metric(logs)
        except MonitorError:
            raise MonitorError(missing(trainer, self._where(), self.monitor, logs)) from None
        if not valid:
            if current is None:
                warn(str(missing(trainer, self._where(), self.monitor, logs)))
            return
        stops, text = self._evaluate_stopping_criteria(logs[self.monitor])
        message = text or ""
        if stops:
            trainer.request_stop(self, message.removesuffix(". Training stops."))
            self.stopping_reason_message = message or None
            self.stopped_epoch = trainer.current_epoch
        elif not self.wait_count:  # it improved before a stop could come, as where min_epochs is not reached
            trainer.withdraw_stop(self)
            self.stopping_reason, self.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None
            self.stopped_epoch = 0
        if message and self.verbose and (trainer.is_global_zero or not self.log_rank_zero_only):
            info(message)

    def _validate_condition_metric(self, logs: dict[str, Tensor]) -> bool:
        """Return whether the metric is among the logged ones.

        Raises:
            MonitorError: If it is not, and ``strict`` is set.
        """
        found = self.monitor in logs
        if not found and self.strict:
            raise MonitorError(Problem(self._where(), "no metric of that name was logged"))
        return found

    def _where(self) -> str:
        return f"EarlyStopping(monitor={self.monitor!r})"

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        """Return whether a value stops the run, and a message, which may be empty; a subclass may decide otherwise."""
        reason, message = self._evaluate(current)
        self.stopping_reason = reason or self.stopping_reason
        return reason is not None, message

    def _evaluate(self, current: Tensor) -> tuple[EarlyStoppingReason | None, str]:
        """Judge one value; return why to stop, None to go on, and a message, which may be empty."""
        reason, best = EarlyStoppingReason, float(self.best_score)
        name, value = self.monitor, float(current)
        sign = "<" if self.mode == "min" else ">"
        if self.check_finite and not math.isfinite(value):
            return reason.NON_FINITE_METRIC, f"{name} = {value} is not finite; best was {best:.5f}. Training stops."
        if self.stopping_threshold is not None and self.monitor_op(current, self.stopping_threshold):
            text = f"{name} = {value:.5f} reached its goal: {sign} {self.stopping_threshold}. Training stops."
            return reason.STOPPING_THRESHOLD, text
        if self.divergence_threshold is not None and self.monitor_op(-current, -self.divergence_threshold):
            text = f"{name} = {value:.5f} diverged: it must stay {sign} {self.divergence_threshold}. Training stops."
            return reason.DIVERGENCE_THRESHOLD, text
        if self.monitor_op(current - self.min_delta, self.best_score):
            message = self._improvement_message(current)
            self.best_score, self.wait_count = current, 0
            return None, message
        self.wait_count += 1
        if self.wait_count < self.patience:
            return None, ""
        text = f"{name} did not improve in the last {self.wait_count} looks; best was {best:.5f}. Training stops."
        return reason.PATIENCE_EXHAUSTED, text

    def _improvement_message(self, current: Tensor) -> str:
        """Return what is reported of a value that is better than the best so far."""
        best, value = float(self.best_score), float(current)
        gain = f" by {abs(best - value):.5f}" if math.isfinite(best) else ""
        return f"{self.monitor} improved{gain} to {value:.5f}."
