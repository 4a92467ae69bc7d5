"""Report a metric to an Optuna trial, and end the fit where the study prunes it.

Rank 0 reports and decides; the others then report to trials of their own, as they have where each rank runs the script.
A study in memory is copied into launched ranks. What is reported there comes home with the outcome, in the callback's
state, or with the error, which is read in the launching process: `_Reports` finds the callback there again. A study
in a database gets connections of its own in another process, since those of its parent cannot be shared.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakValueDictionary

from lt_core.callback import Callback
from lt_core.callbacks.monitored import MonitorError, acts_at_epoch_end, is_real_fit, snapshot
from lt_core.metrics.absent import missing
from lt_core.state.agreement import from_rank_zero
from lt_interface.errors import MissingPackageError, Problem, raise_problems

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["OptunaPruning"]

_AT_HOME: WeakValueDictionary[str, OptunaPruning] = WeakValueDictionary()
_NUMBERS = count()


@dataclass
class _Reports:
    """Values that another process reported: where they are read, the trial gets those that it lacks."""

    key: str
    values: dict[int, float]

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.key in _AT_HOME:
            _AT_HOME[self.key].report(self.values)


class OptunaPruning(Callback):
    """Callback that reports a metric to a trial of an Optuna study, and raises ``TrialPruned`` where that is hopeless.

    The metric is looked at where `EarlyStopping` looks: after each validation, or at each epoch's end where validation
    runs once an epoch or not at all. The trial's step is the epoch; where one epoch has several validations, it is
    the number of looks so far. Which way is better is the study's direction. On several ranks rank 0 reports and
    decides, and the error is raised on all of them.

    Args:
        trial: The trial, as the objective gets it; None on other ranks than 0, where only rank 0 has the study.
        monitor: The metric's name.

    Attributes:
        reported: What was reported of this trial, by step.

    Raises:
        MissingPackageError: If Optuna is not installed.
        ConfigError: If an argument is of another kind, or the study has several objectives.

    Example::

        def objective(trial):
            model = Net(lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True))
            trainer = Trainer(max_epochs=20, callbacks=[OptunaPruning(trial, monitor="val_loss")])
            trainer.fit(model, data)
            return trainer.callback_metrics["val_loss"].item()

        optuna.create_study(direction="minimize", pruner=optuna.pruners.MedianPruner()).optimize(objective, n_trials=50)
    """

    monitoring: ClassVar[bool] = True

    def __init__(self, trial: Any, monitor: str) -> None:
        try:
            import optuna  # noqa: F401
        except ImportError:
            text = "OptunaPruning: optuna is needed. Run: pip install optuna"
            raise MissingPackageError(text, name="optuna") from None
        trial = getattr(trial, "_delegate", trial)  # of a TorchDistributedTrial, whose methods exchange
        problems = []
        if trial is not None and not (hasattr(trial, "report") and hasattr(trial, "should_prune")):
            fix = "Pass what the objective gets from the study."
            problems.append(Problem("OptunaPruning(trial=...)", "must be a trial", type(trial).__name__, fix))
        directions = getattr(getattr(trial, "study", None), "directions", ())
        if len(directions) > 1:
            rule, fix = "a study with several objectives cannot prune", "Leave the callback out."
            problems.append(Problem("OptunaPruning(trial=...)", rule, f"{len(directions)} directions", fix))
        if not isinstance(monitor, str) or not monitor:
            problems.append(Problem(f"OptunaPruning(monitor={monitor!r})", "must be the name of a metric"))
        raise_problems(problems)
        self.trial = trial
        self.monitor: str = monitor
        self.reported: dict[int, float] = {}
        self._process = os.getpid()
        self._key = f"{self._process}-{next(_NUMBERS)}"
        _AT_HOME[self._key] = self

    @property
    def state_key(self) -> str:
        """Return a key in which other monitors differ."""
        return self._generate_state_key(monitor=self.monitor)

    def state_dict(self) -> dict[str, Any]:
        """Return which trial it is, and what was reported of it."""
        return {"trial": self._name(), "reported": [[step, value] for step, value in self.reported.items()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Report what the trial lacks, if it is the same one; another trial begins anew."""
        if list(state_dict["trial"]) == self._name():
            self.report({int(step): float(value) for step, value in state_dict["reported"]})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that rank 0 has a trial, and connect anew to a study that another process has opened."""
        from optuna.storages import InMemoryStorage

        if os.getpid() != self._process and not isinstance(getattr(self.trial, "storage", None), InMemoryStorage):
            self.trial, self._process = pickle.loads(pickle.dumps(self.trial)), os.getpid()
        if stage == "fit" and from_rank_zero(trainer, self.trial is None):
            raise_problems([Problem("OptunaPruning(trial=None)", "rank 0 needs the trial", "", "Pass it there.")])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the metric, where that is the place."""
        self._look(trainer, is_epoch_end=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the metric, where that is the place; an epoch that a stop leaves open is not over."""
        self._look(trainer, is_epoch_end=True)

    def report(self, values: dict[int, float]) -> None:
        """Report values that the trial does not have yet.

        Args:
            values: By step.
        """
        known: Any = ()
        if (study := getattr(self.trial, "study", None)) is not None:
            known = next(t for t in study.get_trials(deepcopy=False) if t.number == self.trial.number)
            known = known.intermediate_values
        for step, value in values.items():
            self.reported[step] = value
            if self.trial is not None and step not in known:
                self.trial.report(value, step)

    def _look(self, trainer: Trainer, is_epoch_end: bool) -> None:
        if not is_real_fit(trainer) or acts_at_epoch_end(trainer, None, self.monitor) != is_epoch_end:
            return
        if is_epoch_end and not trainer.epoch_is_over:
            return
        several = trainer.check_val_every_n_epoch is None or trainer.val_check_interval != 1.0
        step = max(self.reported, default=-1) + 1 if several else trainer.current_epoch
        found = trainer.callback_metrics.get(self.monitor)
        value, step = from_rank_zero(trainer, (None if found is None else float(snapshot(found)), step))
        if value is None:
            where = f"OptunaPruning(monitor={self.monitor!r})"
            raise MonitorError(missing(trainer, where, self.monitor, trainer.callback_metrics))
        if trainer.is_global_zero:
            self.report({step: value})
        prune = from_rank_zero(trainer, trainer.is_global_zero and self.trial.should_prune())
        if not trainer.is_global_zero:  # only now: where the study is shared, the trial has the value
            self.report({step: value})
        if prune:
            import optuna

            trial = "The trial" if self.trial is None else f"Trial {self.trial.number}"
            error = optuna.TrialPruned(
                f"{trial} was pruned in epoch {trainer.current_epoch}: {self.monitor} = {value:g}."
            )
            vars(error)["reports"] = _Reports(self._key, self.reported)
            raise error

    def _name(self) -> list[Any]:
        study = getattr(self.trial, "study", None)
        return [getattr(study, "study_name", None), getattr(self.trial, "number", None)]
