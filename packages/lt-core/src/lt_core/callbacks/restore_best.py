"""Leave the best weights of a fit in the module, not the last ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from lt_core.callback import Callback
from lt_core.callbacks.monitored import MonitorError, acts_at_epoch_end, is_real_fit, snapshot
from lt_core.checkpoint.weights import load_weights
from lt_core.metrics.absent import missing
from lt_core.notices import info, warn
from lt_core.state.agreement import from_rank_zero
from lt_interface.errors import ConfigError, Problem, choice_problems, raise_problems

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["RestoreBest"]


class RestoreBest(Callback):
    """Callback that loads the best weights into the module when a fit has come to its end.

    With a metric of its own it keeps these weights in memory, and in checkpoints, so that a resumed run still has them;
    without one it takes the file that a `ModelCheckpoint` with a monitor calls its best. They are what a checkpoint
    has: of a callback that averages, the average. A fit that an error or a signal ends keeps its last weights.

    Args:
        monitor: The metric that says which are the best; None means the best file.
        mode: ``"min"`` or ``"max"``: which way the metric is better.
        verbose: Whether it is reported which weights they are.

    Attributes:
        best_score: The metric's best value so far; None before the first one.
        best_epoch: The epoch of that value.
        best_step: How many steps were made then.

    Raises:
        ConfigError: If the mode is neither.

    Example:
        >>> RestoreBest("val_loss").best_score is None
        True
    """

    monitoring: ClassVar[bool] = True

    def __init__(self, monitor: str | None = None, mode: str = "min", verbose: bool = True) -> None:
        problems = choice_problems(f"RestoreBest(mode={mode!r})", mode, ("min", "max"))
        if monitor is not None and not isinstance(monitor, str):
            where = f"RestoreBest(monitor={monitor!r})"
            problems.append(Problem(where, "must be the name of a metric", fix='Write monitor="val_loss".'))
        raise_problems(problems)
        self.monitor, self.mode, self.verbose = monitor, mode, verbose
        self.best_score: Tensor | None = None
        self.best_epoch = self.best_step = 0
        self._weights: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """Return a key in which other monitors or modes differ."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def state_dict(self) -> dict[str, Any]:
        """Return the best weights so far, and where they were."""
        if self.best_score is None:
            return {}
        own = {"best_score": self.best_score, "best_epoch": self.best_epoch, "best_step": self.best_step}
        return {**own, "weights": self._weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.best_score, self._weights = state_dict["best_score"], state_dict["weights"]
        self.best_epoch, self.best_step = state_dict["best_epoch"], state_dict["best_step"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that something says which weights are the best.

        Raises:
            ConfigError: If nothing does.
        """
        if stage == "fit" and self.monitor is None and self._saver(trainer) is None and not trainer.fast_dev_run:
            fix = 'Write RestoreBest("val_loss"), or add ModelCheckpoint(monitor="val_loss").'
            got = "neither a monitor nor a ModelCheckpoint with one"
            raise ConfigError(Problem("RestoreBest", "a metric must say which weights are the best", got, fix))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier training."""
        if not trainer.global_step:
            self.best_score = self._weights = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the metric, where that is the place."""
        self._look(trainer, is_epoch_end=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the metric, where that is the place."""
        self._look(trainer, is_epoch_end=False)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the best weights; where there are none, warn and keep the last ones."""
        if trainer.fast_dev_run:
            return
        weights, what = self._weights, f"epoch {self.best_epoch}, step {self.best_step}"
        if self.monitor is None:
            saver = self._saver(trainer)
            path = "" if saver is None else from_rank_zero(trainer, saver.best_model_path)
            weights, what = (trainer.saved_weights(path) if path else None), path
        if weights is None:
            warn("RestoreBest: there are no best weights yet, so the module keeps the last ones.")
            return
        load_weights(pl_module, weights, pl_module.strict_loading is not False, "RestoreBest")
        if self.verbose:
            score = "" if self.best_score is None else f" ({self.monitor}={float(self.best_score):.5g})"
            info(f"RestoreBest: the module has the weights of {what}{score}.")

    def _saver(self, trainer: Trainer) -> Any:
        """Return the first callback that saves the best by a metric, or None."""
        return next((one for one in trainer.checkpoint_callbacks if one.monitor), None)

    def _look(self, trainer: Trainer, is_epoch_end: bool) -> None:
        if self.monitor is None or not is_real_fit(trainer):
            return
        if acts_at_epoch_end(trainer, None, self.monitor) != is_epoch_end:
            return
        found = trainer.callback_metrics.get(self.monitor)
        score = from_rank_zero(trainer, None if found is None else snapshot(found))
        if score is None:
            where = f"RestoreBest(monitor={self.monitor!r})"
            raise MonitorError(missing(trainer, where, self.monitor, trainer.callback_metrics))
        sign = 1 if self.mode == "min" else -1
        if sign * float(score) < (math.inf if self.best_score is None else sign * float(self.best_score)):
            self.best_score, self.best_epoch, self.best_step = score, trainer.current_epoch, trainer.global_step
            self._weights = {
                name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
                for name, value in trainer.saved_weights().items()
            }
