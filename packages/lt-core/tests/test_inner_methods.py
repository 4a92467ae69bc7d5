"""Inner methods that subclasses override, as those written for Lightning do: called, or refused before the fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch.optim import SGD

from lt_core import Callback, Trainer
from lt_core.callbacks import EarlyStopping, ModelCheckpoint
from lt_core.demos import BoringModel
from lt_core.plugins.io import TorchCheckpointIO
from lt_interface.errors import CheckpointError, ConfigError


class _Falling(BoringModel):
    """Module whose validations log 3, 2, 1, ... and its half."""

    def on_validation_epoch_end(self) -> None:
        self.log_dict({"loss": 3.0 - self.current_epoch, "half": -self.current_epoch / 2})


class _Sum(ModelCheckpoint):
    """Checkpoints by a sum of metrics, beside which a note lies."""

    removed: list[str]

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Any]:
        found = super()._monitor_candidates(trainer)
        return {**found, "sum": found["loss"] + found["half"]}

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._remove_checkpoint(trainer, filepath)
        self.removed.append(Path(filepath).name)


def test_a_subclass_adds_what_is_monitored_and_removes_what_lies_beside(tmp_path: Path) -> None:
    """A value that _monitor_candidates adds chooses and names files; _remove_checkpoint is asked for each old one."""
    saves = _Sum(tmp_path, "{sum:.1f}", monitor="sum")
    saves.removed = []
    Trainer(max_epochs=3, limit_train_batches=1, callbacks=[saves], **QUIET | {"enable_checkpointing": True}).fit(
        _Falling()
    )
    assert (saves.best_model_score, [path.name for path in tmp_path.glob("*.ckpt")]) == (0.0, ["sum=0.0.ckpt"])
    assert saves.removed == ["sum=3.0.ckpt", "sum=1.5.ckpt"]


def test_a_subclass_decides_when_training_stops(tmp_path: Path) -> None:
    """EarlyStopping asks _evaluate_stopping_criteria of a subclass, which may wait, or stop for a reason of its own."""

    class Late(EarlyStopping):
        looks = 0

        def _evaluate_stopping_criteria(self, current: torch.Tensor) -> tuple[bool, str]:
            self.looks += 1
            if self.looks == 5:
                return True, "five looks"
            return (False, "warm-up") if self.looks < 5 else super()._evaluate_stopping_criteria(current)

    stops = Late("loss", patience=1, min_delta=100.0)
    trainer = Trainer(max_epochs=9, limit_train_batches=1, callbacks=[stops], **QUIET)
    trainer.fit(_Falling())
    assert (trainer.current_epoch, stops.stopped_epoch, stops.stopping_reason_message) == (5, 4, "five looks")


@pytest.mark.parametrize(
    ("base", "name", "fix"),
    [
        (ModelCheckpoint, "_save_checkpoint", "after_save_checkpoint"),
        (ModelCheckpoint, "_update_best_and_save", "on_save_checkpoint"),
        (EarlyStopping, "_run_early_stopping_check", "Override _evaluate_stopping_criteria"),
    ],
)
def test_a_method_that_would_never_run_is_refused(base: type[Callback], name: str, fix: str) -> None:
    """An override of an inner method that nothing calls here is one error before the fit, with what to use."""
    one: Any = type("Mine", (base,), {name: lambda self, *args: None})(monitor="loss")
    with pytest.raises(ConfigError, match=rf"Mine\.{name}: nothing calls this method here.*{fix}"):
        Trainer(max_epochs=1, callbacks=[one], **QUIET | {"enable_checkpointing": True}).fit(_Falling())


def test_an_inner_part_of_the_trainer_names_who_answers() -> None:
    """A connector of Lightning's trainer is no attribute, and the error says whom to ask."""
    trainer = Trainer(max_epochs=1, **QUIET)
    assert not hasattr(trainer, "_accelerator_connector")
    with pytest.raises(AttributeError, match=r"ask trainer\.world_size"):
        _ = trainer._accelerator_connector


class _Averaging(SGD):
    """Optimizer that keeps an average, and whose state is of a form of its own."""

    average: torch.Tensor = torch.zeros(())

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self.average = 0.9 * self.average + self.param_groups[0]["params"][0].detach().sum()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"inner": super().state_dict(), "average": (self.average,)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["inner"])
        (self.average,) = state_dict["average"]


class _Averaged(BoringModel):
    kind: type[SGD] = _Averaging

    def configure_optimizers(self) -> Any:
        return self.kind(self.parameters(), lr=0.01, momentum=0.9)


@pytest.mark.parametrize("plugins", [[], [TorchCheckpointIO()]])
def test_an_optimizer_whose_state_has_a_form_of_its_own_is_resumed(plugins: list[Any], tmp_path: Path) -> None:
    """A state_dict without param_groups is saved as it is and given back; a plain optimizer refuses it."""

    def fit(epochs: int, kind: type[SGD] = _Averaging, path: Path | None = None) -> Trainer:
        torch.manual_seed(1)
        module = _Averaged()
        module.kind = kind
        trainer = Trainer(max_epochs=epochs, limit_train_batches=2, limit_val_batches=0, plugins=plugins, **QUIET)
        trainer.fit(module, ckpt_path=path)
        return trainer

    fit(1).save_checkpoint(tmp_path / "a.ckpt")
    resumed, straight = fit(2, path=tmp_path / "a.ckpt"), fit(2)
    assert resumed.optimizers[0].average == straight.optimizers[0].average != 0
    assert torch.equal(resumed.model.layer.weight, straight.model.layer.weight)
    with pytest.raises(CheckpointError, match=r"same kind of optimizer\. Got a state of a wrapper's own form"):
        fit(2, SGD, tmp_path / "a.ckpt")


def test_an_optimizer_that_a_callback_wraps_is_resumed(tmp_path: Path) -> None:
    """Optimizers that on_fit_start exchanges are those that get the checkpoint's states."""

    class Wrap(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
            trainer.optimizers = [_Averaging(pl_module.parameters(), lr=0.01, momentum=0.9)]

    def fit(epochs: int, path: Path | None = None) -> Trainer:
        torch.manual_seed(1)
        module = _Averaged()
        module.kind = SGD
        trainer = Trainer(max_epochs=epochs, limit_train_batches=2, limit_val_batches=0, callbacks=[Wrap()], **QUIET)
        trainer.fit(module, ckpt_path=path)
        return trainer

    fit(1).save_checkpoint(tmp_path / "a.ckpt")
    assert fit(2, tmp_path / "a.ckpt").optimizers[0].average == fit(2).optimizers[0].average != 0
