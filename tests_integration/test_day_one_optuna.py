"""Studies of Optuna that prune fits: alone, on launched ranks, on ranks of a script, with a database and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import LightningModule, Trainer
from lt_core.callbacks import EarlyStopping, OptunaPruning
from lt_interface.errors import ConfigError, MissingPackageError
from lt_interface.testing.ranks import run_ranks

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.ERROR)

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
DATA = torch.utils.data.DataLoader(torch.ones(8, 2), batch_size=2)


class Net(LightningModule):
    """Module that logs its level, which falls with each epoch."""

    def __init__(self, level: float, name: str = "val_loss") -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.level, self.name = level, name

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("train_level", self.level - self.current_epoch, on_epoch=True, on_step=False)
        return self.layer(batch).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log(self.name, torch.tensor(float(self.level - self.current_epoch)), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Threshold(optuna.pruners.BasePruner):
    """Pruner that ends a trial whose newest value is above a limit after a step."""

    def __init__(self, limit: float, after: int) -> None:
        self.limit, self.after = limit, after

    def prune(self, study: Any, trial: Any) -> bool:
        return trial.last_step >= self.after and trial.intermediate_values[trial.last_step] > self.limit


def make_study(**arguments: Any) -> Any:
    """Return a study whose trials at level 10 are pruned at their second look."""
    return optuna.create_study(pruner=Threshold(5.0, 1), **arguments)


def fit(trial: Any, folder: Path, level: float = 10.0, monitor: str = "val_loss", **flags: Any) -> Any:
    """Return the trainer after a fit of three epochs, if it is not pruned."""
    trainer = Trainer(
        **{**QUIET, "max_epochs": 3, "default_root_dir": folder} | flags, callbacks=[OptunaPruning(trial, monitor)]
    )
    trainer.fit(Net(level), DATA, DATA)
    return trainer


def objective(folder: Path, **flags: Any) -> Any:
    """Return an objective whose even trials go on and whose odd ones are pruned."""

    def run(trial: Any) -> float:
        level = 10.0 if trial.number % 2 else 3.0
        return float(fit(trial, folder, level, **flags).callback_metrics["val_loss"])

    return run


def told(study: Any) -> list[tuple[str, Any, dict[int, float]]]:
    """Return of each trial its state, its value and what was reported."""
    return [(t.state.name, t.value, t.intermediate_values) for t in study.trials]


GOES_ON = ("COMPLETE", 1.0, {0: 3.0, 1: 2.0, 2: 1.0})
PRUNED = ("PRUNED", 9.0, {0: 10.0, 1: 9.0})


def test_a_study_prunes_by_the_monitored_metric(tmp_path: Path) -> None:
    """Each epoch is reported once, the sanity check not at all, and a pruned trial ends the fit with TrialPruned."""
    study = make_study()
    study.optimize(objective(tmp_path), n_trials=2)
    assert told(study) == [GOES_ON, PRUNED]


def test_the_direction_is_the_study_s(tmp_path: Path) -> None:
    """A study that maximizes prunes the lower one of two."""
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1)
    states = {}
    for direction in ("minimize", "maximize"):
        study = optuna.create_study(direction=direction, pruner=pruner)
        study.optimize(objective(tmp_path), n_trials=2)
        states[direction] = [trial.state.name for trial in study.trials]
    assert states == {"minimize": ["COMPLETE", "PRUNED"], "maximize": ["COMPLETE", "COMPLETE"]}


@pytest.mark.parametrize(
    ("flags", "monitor", "values"),
    [
        ({}, "train_level", {0: 10.0, 1: 9.0}),
        ({"limit_val_batches": 0}, "train_level", {0: 10.0, 1: 9.0}),
        ({"check_val_every_n_epoch": 2, "max_epochs": 4}, "val_loss", {1: 9.0}),
        ({"val_check_interval": 0.5}, "val_loss", {0: 10.0, 1: 10.0}),
        ({"val_check_interval": 2, "check_val_every_n_epoch": None}, "val_loss", {0: 10.0, 1: 10.0}),
    ],
)
def test_steps_are_epochs_or_validations(tmp_path: Path, flags: Any, monitor: str, values: dict[int, float]) -> None:
    """A look's step is its epoch, or its number where an epoch has several validations; training's metrics count."""
    study = make_study()
    study.optimize(lambda trial: fit(trial, tmp_path, monitor=monitor, **flags), n_trials=1)
    assert [(state, reported) for state, _, reported in told(study)] == [("PRUNED", values)]


def test_what_the_module_logs_at_an_epoch_s_end_is_seen(tmp_path: Path) -> None:
    """A metric that the module logs in its own on_train_epoch_end is reported in that epoch."""
    study = make_study()

    def run(trial: Any) -> None:
        module = Net(10.0)
        module.on_train_epoch_end = lambda: module.log("late", 10.0 - module.current_epoch)  # type: ignore[method-assign]
        Trainer(**QUIET, max_epochs=3, default_root_dir=tmp_path, callbacks=[OptunaPruning(trial, "late")]).fit(
            module, DATA, DATA
        )

    study.optimize(run, n_trials=1)
    assert told(study) == [("PRUNED", 9.0, {0: 10.0, 1: 9.0})]


def test_a_try_of_each_loop_reports_nothing(tmp_path: Path) -> None:
    """fast_dev_run and a validation outside a fit are no values of the trial."""
    study = make_study()

    def run(trial: Any) -> float:
        trainer = fit(trial, tmp_path, fast_dev_run=True)
        trainer.validate(Net(10.0), DATA, verbose=False)
        return 0.0

    study.optimize(run, n_trials=1)
    assert told(study) == [("COMPLETE", 0.0, {})]


def test_what_is_wrong_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No trial, no name, several objectives, a metric that nobody logs and a missing package are errors that say so."""
    several = optuna.create_study(directions=["minimize", "maximize"]).ask()
    with pytest.raises(ConfigError, match="2 directions"):
        OptunaPruning(several, "val_loss")
    with pytest.raises(ConfigError, match=r"must be a trial. Got Study[\s\S]*name of a metric"):
        OptunaPruning(make_study(), "")
    with pytest.raises(ConfigError, match=r"rank 0 needs the trial"):
        fit(None, tmp_path)
    with pytest.raises(Exception, match=r'no metric of that name was logged.*Did you mean "val_loss"'):
        fit(make_study().ask(), tmp_path, monitor="val_los")
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingPackageError, match="pip install optuna"):
        OptunaPruning(several, "val_loss")


def test_other_kinds_of_trials_serve(tmp_path: Path) -> None:
    """A fixed trial takes reports and prunes nothing."""
    assert fit(optuna.trial.FixedTrial({}), tmp_path).current_epoch == 3


def test_a_run_cut_in_mid_epoch_goes_on_with_its_trial(tmp_path: Path) -> None:
    """A resumed run reports each epoch once, the one in which it was cut with its full value."""
    whole, cut, other = (make_study().ask() for _ in range(3))
    callback = fit(whole, tmp_path, 4.0, monitor="train_level").callbacks
    path = tmp_path / "cut.ckpt"
    fit(cut, tmp_path, 4.0, monitor="train_level", max_steps=6).save_checkpoint(path)
    assert cut.study.trials[0].intermediate_values == {0: 4.0}

    def resume(trial: Any) -> Any:
        again = OptunaPruning(trial, "train_level")
        trainer = Trainer(**QUIET, max_epochs=3, default_root_dir=tmp_path, callbacks=[again])
        trainer.fit(Net(4.0), DATA, DATA, ckpt_path=path)
        return again.state_dict()["reported"], trial.study.trials[0].intermediate_values

    expected = {0: 4.0, 1: 3.0, 2: 2.0}
    assert resume(cut) == ([[0, 4.0], [1, 3.0], [2, 2.0]], expected)
    assert whole.study.trials[0].intermediate_values == expected
    assert next(c for c in callback if isinstance(c, OptunaPruning)).reported == expected
    assert resume(other)[1] == {1: 3.0, 2: 2.0}  # another trial's values are not its own


@pytest.mark.parametrize("storage", ["memory", "database"])
def test_launched_ranks_prune_together(tmp_path: Path, storage: str) -> None:
    """Two forked ranks end together, and the launching process has the trial with its values, in memory, too."""
    url = None if storage == "memory" else f"sqlite:///{tmp_path}/study.db"
    study = make_study(storage=url)
    study.optimize(objective(tmp_path, accelerator="cpu", devices=2, strategy="ddp_fork"), n_trials=2)
    assert told(study) == [GOES_ON, PRUNED]


def test_a_database_gets_connections_of_its_own_in_another_process(tmp_path: Path) -> None:
    """A process that was forked does not use its parent's connections to the study."""
    callback = OptunaPruning(make_study(storage=f"sqlite:///{tmp_path}/study.db").ask(), "val_loss")
    before = callback.trial

    def job(rank: int) -> bool:
        trainer = Trainer(**QUIET, max_epochs=1, default_root_dir=tmp_path, callbacks=[callback], accelerator="cpu")
        trainer.fit(Net(1.0), DATA, DATA)
        return callback.trial.storage is not before.storage

    assert run_ranks(job, size=1, timeout=120) == [True]
    assert before.study.trials[0].intermediate_values == {0: 1.0}


def test_ranks_of_a_script_prune_together(tmp_path: Path) -> None:
    """Rank 0 decides where it alone has the trial, and where each rank has a study of its own."""

    def job(rank: int) -> Any:
        study = make_study(study_name=f"of {rank}")
        flags = {"devices": 2, "accelerator": "cpu", "strategy": DDPStrategy()}
        mine = [PRUNED[0]]
        try:
            fit(study.ask() if rank == 0 else None, tmp_path, **flags)
            mine = ["COMPLETE"]
        except optuna.TrialPruned:
            pass
        if rank:
            study.ask()
            study.pruner = optuna.pruners.NopPruner()  # it is not asked
        study.optimize(lambda trial: fit(trial, tmp_path, **flags), n_trials=1)
        return mine, told(study)[-1]

    assert run_ranks(job, timeout=120) == [(["PRUNED"], PRUNED)] * 2


def test_early_stopping_beside_it_is_no_pruning(tmp_path: Path) -> None:
    """A fit that another callback ends is a complete trial."""
    study = make_study()

    def run(trial: Any) -> float:
        stop = EarlyStopping("val_loss", stopping_threshold=2.5)
        trainer = Trainer(
            **QUIET, max_epochs=3, default_root_dir=tmp_path, callbacks=[OptunaPruning(trial, "val_loss"), stop]
        )
        trainer.fit(Net(3.0), DATA, DATA)
        return float(trainer.callback_metrics["val_loss"])

    study.optimize(run, n_trials=1)
    assert told(study) == [("COMPLETE", 2.0, {0: 3.0, 1: 2.0})]
