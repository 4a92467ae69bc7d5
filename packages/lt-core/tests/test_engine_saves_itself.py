"""Save and resume with engines that write weights and optimizer states themselves, each rank its part."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lt_core import Trainer
from lt_core.builtin.engine import PlainEngine
from lt_core.builtin.single_device import SingleDeviceStrategy
from lt_core.callbacks import ModelCheckpoint
from lt_core.checkpoint import load_checkpoint
from lt_interface import CheckpointError
from lt_interface.testing import EngineConformance
from lt_interface.testing.training import Job


class Parted(PlainEngine):
    """Engine that keeps one file for weights and states, in a form of its own."""

    fails = False

    def save(self, path: str) -> None:
        if self.fails:
            with open(os.path.join(path, "half"), "w"):
                raise OSError("the disk is full")
        state = {"model": self.model.state_dict(), "states": [o.state_dict() for o in self.optimizers]}
        torch.save(state, os.path.join(path, "part.pt"))

    def load(self, path: str) -> None:
        file = os.path.join(path, "part.pt")
        if not os.path.exists(file):
            raise CheckpointError(f"{file}: this part must be there. Got none. Copy it, too.")
        state = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["states"], strict=bool(self.optimizers)):
            optimizer.load_state_dict(saved)


class PartedStrategy(SingleDeviceStrategy):
    """Strategy of one device whose engine saves itself."""

    name = "parted"
    kind: type[PlainEngine] = Parted

    def engine(self, module: Any, optimizers: Any, schedulers: Any, precision: Any, plan: Any, default: Any) -> Any:
        return self.kind(module, optimizers, schedulers, precision, plan)


class TestParted(EngineConformance):
    def make(self) -> Any:
        return PartedStrategy()


def fit(folder: Path, epochs: int, strategy: Any = None, ckpt_path: Any = None, **options: Any) -> tuple[Trainer, Any]:
    """Train and keep checkpoints in the folder."""
    job = Job(epochs=epochs)
    net, saver = job.network(), ModelCheckpoint(dirpath=folder, save_last=True, **options)
    flags = {"enable_checkpointing": True, "callbacks": [saver], "default_root_dir": folder}
    trainer = job.trainer(strategy=strategy or PartedStrategy(), **flags)
    trainer.fit(net, job.data(0, 1), job.data(0, 1)[:2], ckpt_path=ckpt_path)
    return trainer, net


def names(folder: Path) -> set[str]:
    """Return what lies in the folder, the number of a save left out."""
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return {path.name.rpartition("-")[0] if ".engine-" in path.name else path.name for path in visible}


def test_the_file_names_the_folder_and_holds_the_rest(tmp_path: Path) -> None:
    """Weights and optimizer states lie in the engine's folder alone; counters and callbacks in the file."""
    fit(tmp_path, 1)
    assert names(tmp_path) == {"epoch=0-step=5.ckpt", "epoch=0-step=5.ckpt.engine", "last.ckpt", "last.ckpt.engine"}
    tree = load_checkpoint(tmp_path / "last.ckpt")
    assert not {"state_dict", "optimizer_states"} & tree.keys()
    assert (tmp_path / tree["engine_folder"] / "part.pt").is_file()
    assert tree["progress"]["step"] == 5


@pytest.mark.parametrize("which", ["last", "last.ckpt", "epoch=0-step=5.ckpt"])
def test_a_resumed_run_is_the_same(tmp_path: Path, which: str) -> None:
    """A resume finds the newest file and its folder, and ends at the bits of the run that went through."""
    expected = Job(epochs=3).train()
    fit(tmp_path, 1)
    trainer, net = fit(tmp_path, 3, ckpt_path="last" if which == "last" else tmp_path / which)
    assert trainer.global_step == 15
    for name, value in net.state_dict().items():
        assert value.tolist() == expected[name]


def test_retention_removes_folders(tmp_path: Path) -> None:
    """A checkpoint that is no longer wanted goes with its folder, and a file that is replaced leaves none behind."""
    fit(tmp_path, 3)
    assert names(tmp_path) == {"epoch=2-step=15.ckpt", "epoch=2-step=15.ckpt.engine", "last.ckpt", "last.ckpt.engine"}
    assert len(list(tmp_path.glob("*.engine-*"))) == 2


def test_a_failed_folder_is_a_failed_save(tmp_path: Path) -> None:
    """An engine that cannot write gives one warning a save: no file names a folder that is not whole, none is left."""

    class Failing(PartedStrategy):
        kind = type("Failing", (Parted,), {"fails": True})

    fit(tmp_path, 1)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.warns(UserWarning, match=r"not written, training goes on. OSError: the disk is full"):
        fit(tmp_path, 2, Failing(), ckpt_path=tmp_path / "last.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_file_that_cannot_be_written_leaves_no_folder(tmp_path: Path) -> None:
    """Where the rest of the checkpoint is refused, the engine's part of it goes, too."""
    job, net = Job(epochs=1), Job().network()
    trainer = job.trainer(strategy=PartedStrategy(), limit_val_batches=0)
    trainer.fit(net, job.data(0, 1))
    (tmp_path / "one.ckpt").mkdir()
    with pytest.raises(OSError):
        trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert names(tmp_path) == {"one.ckpt"}


@pytest.mark.filterwarnings("ignore:ModelCheckpoint")
def test_moved_files_and_other_strategies_are_refused(tmp_path: Path) -> None:
    """A file without its folder, and a strategy that cannot read it, are errors that name folder and way out."""
    fit(tmp_path / "a", 1)
    (tmp_path / "b").mkdir()
    os.rename(tmp_path / "a" / "last.ckpt", tmp_path / "b" / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"must lie beside it. Got none at .*last.ckpt.engine-\d+. Put it there"):
        fit(tmp_path / "c", 2, ckpt_path=tmp_path / "b" / "last.ckpt")
    with pytest.raises(CheckpointError, match=r'read by the strategy that wrote it. Got strategy="single_device"'):
        fit(tmp_path / "c", 2, SingleDeviceStrategy(), ckpt_path=tmp_path / "a" / "epoch=0-step=5.ckpt")
    with pytest.raises(CheckpointError, match=r"must hold weights.*weights_only=True"):
        type(Job().network()).load_from_checkpoint(tmp_path / "a" / "epoch=0-step=5.ckpt")


def test_weights_alone_stay_readable(tmp_path: Path) -> None:
    """A file of weights alone holds them by their names, for any strategy and for load_from_checkpoint."""
    _, net = fit(tmp_path, 1, save_weights_only=True)
    assert not list(tmp_path.glob("*.engine-*"))
    again = type(net).load_from_checkpoint(tmp_path / "last.ckpt")
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_another_engines_file_is_taken_over(tmp_path: Path) -> None:
    """A run saved under a plain engine goes on under one that saves itself."""
    expected = Job(epochs=3).train()
    fit(tmp_path, 1, SingleDeviceStrategy())
    _, net = fit(tmp_path, 3, ckpt_path="last")
    assert net.state_dict()["layers.2.bias"].tolist() == expected["layers.2.bias"]
