"""Calls of the trainer whose rank is another process: what travels, what comes back, and that it is all the same."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # the first optimizer imports it, which takes seconds: forked ranks inherit it
from logged import logged
from processes import ForkLauncher, SpawnLauncher
from quiet import SILENT
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lt_core import LightningDataModule, LightningModule, Trainer
from lt_core.callbacks import EarlyStopping, ModelCheckpoint
from lt_core.checkpoint import load_checkpoint
from lt_core.run import outcome as outcomes
from lt_interface.errors import CheckpointError

LAUNCHERS = [pytest.param(ForkLauncher, id="fork"), pytest.param(SpawnLauncher, id="spawn")]
# A new interpreter takes seconds.
OFTEN_LAUNCHED = [LAUNCHERS[0], pytest.param(SpawnLauncher, id="spawn", marks=pytest.mark.slow)]


class Net(LightningModule):
    """Module whose weights depend on the random state: dropout and shuffled data."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.seen_in: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self(batch[0]).square().mean()
        self.log("loss", loss, prog_bar=True)
        self.log("draw", float(torch.rand(())) + random.random())
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self(batch[0]).square().mean())

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log what a test measures."""
        self.log("test_loss", self(batch[0]).square().mean())

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        return {"y": self(batch[0])[:, 0], "x": batch[0]}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


class Data(LightningDataModule):
    """Data whose state is the number of its loaders that were made."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def train_dataloader(self) -> Any:
        self.made += 1
        return loader(shuffle=True)

    def val_dataloader(self) -> Any:
        return loader()

    def state_dict(self) -> dict[str, Any]:
        return {"made": self.made}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.made = state_dict["made"]


class Unsound(Net):
    """Module that fails in its second batch."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if batch_idx == 1:
            raise CheckpointError("no such batch")
        return super().training_step(batch, batch_idx)


def loader(shuffle: bool = False) -> DataLoader[Any]:
    """Return a loader of 20 samples in 5 batches."""
    samples = torch.arange(80.0).reshape(20, 4) / 80
    return DataLoader(TensorDataset(samples), batch_size=4, shuffle=shuffle)


def trainer_in(folder: Path, launcher: Any = None, **flags: Any) -> Trainer:
    """Return a trainer of two epochs, or with other flags."""
    given = {"max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0, **SILENT, **flags}
    return Trainer(default_root_dir=folder, launcher=launcher, **given)


def net() -> Net:
    """Return the module that each test trains, the same each time."""
    torch.manual_seed(1)
    random.seed(1)
    return Net()


def assert_equal_weights(found: nn.Module, expected: nn.Module) -> None:
    """Compare weights and buffers bit for bit."""
    ours, theirs = found.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", LAUNCHERS)
def test_a_fit_in_another_process_is_the_same(tmp_path: Path, kind: Any) -> None:
    """Weights, metrics, counters, data module and history are those of a fit in this process, bit for bit."""
    here, there = trainer_in(tmp_path / "here"), trainer_in(tmp_path / "there", kind())
    expected, found, data, other = net(), net(), Data(), Data()
    before = torch.get_rng_state(), random.getstate()
    there.fit(found, datamodule=data)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    here.fit(expected, datamodule=other)
    assert_equal_weights(found, expected)
    for name in ("callback_metrics", "logged_metrics", "progress_bar_metrics"):
        assert getattr(there, name) == getattr(here, name)
    assert {"loss", "val_loss", "draw"} <= set(there.callback_metrics)
    assert (there.current_epoch, there.global_step) == (here.current_epoch, here.global_step) == (2, 10)
    assert dict(logged(there)) == dict(logged(here))
    assert str(there.state.status) == "finished"
    assert data.made == other.made == 1
    assert not there.should_stop
    assert found.trainer is there
    assert there.lightning_module is found


@pytest.mark.filterwarnings("ignore:ModelCheckpoint:UserWarning")
@pytest.mark.parametrize("kind", LAUNCHERS)
def test_optimizers_have_their_states_after_a_launched_fit(tmp_path: Path, kind: Any) -> None:
    """The optimizers and schedulers of a fit elsewhere are made when asked for, and a checkpoint can be saved."""
    here, there = trainer_in(tmp_path / "here"), trainer_in(tmp_path / "there", kind())
    expected, found = net(), net()
    there.fit(found, loader(True), loader())
    here.fit(expected, loader(True), loader())
    before = torch.get_rng_state()
    (ours,), (theirs,) = there.optimizers, here.optimizers
    assert torch.equal(torch.get_rng_state(), before)
    assert ours is there.optimizers[0]
    for parameter, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours.state[parameter]["momentum_buffer"], theirs.state[other]["momentum_buffer"])
    assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
    assert there.lr_scheduler_configs[0].scheduler.state_dict() == here.lr_scheduler_configs[0].scheduler.state_dict()
    there.save_checkpoint(tmp_path / "a.ckpt")
    assert_equal_weights(Net.load_from_checkpoint(tmp_path / "a.ckpt"), expected)
    resumed = trainer_in(tmp_path / "resumed", max_epochs=3)
    resumed.fit(net(), loader(True), loader(), ckpt_path=tmp_path / "a.ckpt")
    assert resumed.global_step == 15


@pytest.mark.parametrize("kind", OFTEN_LAUNCHED)
def test_callbacks_know_what_happened(tmp_path: Path, kind: Any) -> None:
    """EarlyStopping and ModelCheckpoint in this process have the states that they had in the rank."""
    stopping = EarlyStopping("val_loss", patience=1, mode="max", strict=True)
    saving = ModelCheckpoint(monitor="val_loss", mode="max")
    trainer = trainer_in(tmp_path, kind(), callbacks=[stopping, saving], max_epochs=20)
    trainer.fit(net(), loader(True), loader())
    assert 0 < stopping.stopped_epoch < 19
    assert stopping.wait_count == 1
    assert torch.isfinite(stopping.best_score)
    assert trainer.should_stop
    assert Path(saving.best_model_path).is_file()
    found = trainer.validate(dataloaders=loader(), ckpt_path="best", verbose=False)
    assert found[0]["val_loss"] == pytest.approx(float(saving.best_model_score))


@pytest.mark.parametrize("kind", OFTEN_LAUNCHED)
def test_evaluation_and_prediction_come_back(tmp_path: Path, kind: Any) -> None:
    """Validate, test and predict elsewhere return what they return here, and leave the weights alone."""
    here, there = trainer_in(tmp_path / "here", logger=False), trainer_in(tmp_path / "there", kind(), logger=False)
    expected, found = net(), net()
    assert there.validate(found, loader(), verbose=False) == here.validate(expected, loader(), verbose=False)
    assert there.callback_metrics == here.callback_metrics
    assert there.test(found, loader(), verbose=False) == here.test(expected, loader(), verbose=False)
    for ours, theirs in zip(there.predict(found, loader()), here.predict(expected, loader()), strict=True):
        assert torch.equal(ours["y"], theirs["y"])
        assert torch.equal(ours["x"], theirs["x"])
    assert_equal_weights(found, expected)
    assert there.predict(found, loader(), return_predictions=False) is None


@pytest.mark.parametrize("kind", OFTEN_LAUNCHED)
def test_a_second_fit_continues(tmp_path: Path, kind: Any) -> None:
    """A second fit goes on from the counters, the weights, the version and the history of the first."""
    here, there = trainer_in(tmp_path / "here"), trainer_in(tmp_path / "there", kind())
    expected, found = net(), net()
    for trainer, module in ((there, found), (here, expected)):
        for epochs in (2, 4):
            torch.manual_seed(epochs)
            random.seed(epochs)
            trainer.max_epochs = epochs
            trainer.fit(module, loader(True), loader())
    assert there.global_step == here.global_step == 20
    assert_equal_weights(found, expected)
    assert dict(logged(there)) == dict(logged(here))
    assert there.logger.version == here.logger.version == 0
    ours, theirs = (Path(t.log_dir, "metrics.csv").read_text() for t in (there, here))
    assert ours == theirs


@pytest.mark.filterwarnings("ignore:ModelCheckpoint:UserWarning")
@pytest.mark.parametrize("kind", OFTEN_LAUNCHED)
def test_a_checkpoint_is_resumed_elsewhere(tmp_path: Path, kind: Any) -> None:
    """A checkpoint saved elsewhere is resumed elsewhere and here alike, and the trainer names it."""
    first = trainer_in(tmp_path / "first", kind(), max_epochs=1)
    first.fit(net(), loader(True), loader())
    path = first.checkpoint_callback.best_model_path
    here, there = trainer_in(tmp_path / "here"), trainer_in(tmp_path / "there", kind())
    expected, found = net(), net()
    there.fit(found, loader(True), loader(), ckpt_path=path)
    here.fit(expected, loader(True), loader(), ckpt_path=path)
    assert there.global_step == here.global_step == 10
    assert there.resumed_from == path
    assert_equal_weights(found, expected)


@pytest.mark.parametrize("kind", LAUNCHERS)
def test_an_error_keeps_its_type(tmp_path: Path, kind: Any) -> None:
    """What a rank raises is raised here, of the same type, and the trainer counts as interrupted."""
    trainer = trainer_in(tmp_path, kind())
    with pytest.raises(CheckpointError, match="no such batch"):
        trainer.fit(Unsound(), loader(), loader())
    assert trainer.interrupted
    assert str(trainer.state.fn) == "fit"


@pytest.mark.parametrize("kind", OFTEN_LAUNCHED)
def test_large_predictions_take_a_file(tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions above the limit travel through a file below the root folder, which is gone afterwards."""
    monkeypatch.setattr(outcomes, "LARGE_BYTES", 16)  # the new interpreter keeps its own
    opened: list[Any] = []
    read = outcomes._from_file
    monkeypatch.setattr(outcomes, "_from_file", lambda value: opened.append(value) or read(value))
    trainer = trainer_in(tmp_path, kind(), logger=False)
    found = trainer.predict(net(), loader())
    assert len(found) == 5
    assert found[0]["x"].shape == (4, 4)
    assert list(tmp_path.iterdir()) == []
    assert isinstance(opened[0], outcomes._InFile) == (kind is ForkLauncher)


class Late(Net):
    """Module whose layers are made in configure_model."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: Any = None

    def configure_model(self) -> None:
        if self.layers is None:
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))


@pytest.mark.parametrize("kind", OFTEN_LAUNCHED)
def test_layers_and_formats_made_in_the_rank_come_back(tmp_path: Path, kind: Any) -> None:
    """Layers of configure_model are made here too, and weights have the precision's format, as after a fit here."""
    flags = {"precision": "64-true", "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    here, there = trainer_in(tmp_path, **flags), trainer_in(tmp_path, kind(), **flags)
    modules = []
    for trainer in (here, there):
        torch.manual_seed(1)
        modules.append(Late())
        trainer.fit(modules[-1], loader(True), loader())
    assert modules[1].layers[0].weight.dtype == torch.float64
    assert_equal_weights(*modules)


class Straight(Net):
    """Module that is compiled without a break."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAUNCHERS)
def test_a_compiled_module_travels(tmp_path: Path, kind: Any) -> None:
    """A module in its compile wrapper is trained in the rank as it is here."""
    flags = {"max_epochs": 1, "logger": False, "enable_checkpointing": False}
    torch.manual_seed(1)
    expected = Straight()
    found = copy.deepcopy(expected)
    trainer_in(tmp_path, kind(), **flags).fit(torch.compile(found, backend="eager"), loader(True), loader())
    trainer_in(tmp_path, **flags).fit(torch.compile(expected, backend="eager"), loader(True), loader())
    assert_equal_weights(found, expected)


@pytest.mark.parametrize("kind", OFTEN_LAUNCHED)
def test_history_without_a_file_comes_back(tmp_path: Path, kind: Any) -> None:
    """Without a logger the records that the rank kept in memory are the history here."""
    trainer = trainer_in(tmp_path, kind(), logger=False, enable_checkpointing=False)
    trainer.fit(net(), loader(True), loader())
    assert len(logged(trainer)["loss"]) == 10
    trainer.max_epochs = 3
    trainer.fit(trainer.lightning_module, loader(True), loader())
    assert len(logged(trainer)["loss"]) == 15


class Watched(Net):
    """Module that brings a callback of its own, which knows its trainer."""

    def configure_callbacks(self) -> Any:
        assert self.trainer is not None
        return [EarlyStopping("val_loss", patience=1, mode="max")]


@pytest.mark.parametrize("kind", OFTEN_LAUNCHED)
def test_the_modules_own_callbacks_come_back(tmp_path: Path, kind: Any) -> None:
    """Callbacks of configure_callbacks stand among the trainer's afterwards, with their states, once for each fit."""
    torch.manual_seed(1)
    trainer, module = trainer_in(tmp_path, kind(), max_epochs=20), Watched()
    before = torch.get_rng_state()
    trainer.fit(module, loader(True), loader())
    assert torch.equal(torch.get_rng_state(), before)
    (stopping,) = (c for c in trainer.callbacks if isinstance(c, EarlyStopping))
    assert 0 < stopping.stopped_epoch < 19
    assert stopping.wait_count == 1
    assert isinstance(trainer.callbacks[-1], ModelCheckpoint)
    trainer.validate(module, loader(), verbose=False)
    assert sum(isinstance(c, EarlyStopping) for c in trainer.callbacks) == 1


@pytest.mark.filterwarnings("ignore:ModelCheckpoint:UserWarning")
@pytest.mark.parametrize("kind", OFTEN_LAUNCHED)
def test_a_checkpoint_saved_afterwards_resumes_exactly(tmp_path: Path, kind: Any) -> None:
    """What is saved here after a fit elsewhere holds the rank's place in the data and its random state."""
    expected, resumed = net(), net()
    trainer_in(tmp_path / "whole").fit(expected, loader(True), loader())
    first = trainer_in(tmp_path / "first", kind(), max_epochs=1)
    first.fit(net(), loader(True), loader())
    first.save_checkpoint(tmp_path / "a.ckpt")
    (place,) = load_checkpoint(tmp_path / "a.ckpt")["data"]["train"]["leaves"]
    assert place["samples"] == 20
    trainer_in(tmp_path / "rest").fit(resumed, loader(True), loader(), ckpt_path=tmp_path / "a.ckpt")
    assert_equal_weights(resumed, expected)
