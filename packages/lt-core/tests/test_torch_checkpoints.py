"""TorchCheckpointIO writes Lightning's layout, and every reader finds the format that a file was written in."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import SILENT
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lt_core import Callback, LightningDataModule, LightningModule, Trainer
from lt_core.callbacks import ModelCheckpoint
from lt_core.checkpoint import AsyncCheckpointIO, TorchCheckpointIO, find_last, load_checkpoint, parameter_signature
from lt_core.checkpoint.format.lightning_import import imported
from lt_core.checkpoint.format.lightning_layout import OWN_KEYS, from_layout, to_layout
from lt_core.plugins.io import CheckpointIO
from lt_interface import CheckpointError


class Thing:
    """An object to keep."""


class Net(LightningModule):
    def __init__(self, size: int = 2, thing: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(1, size)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch[0]).pow(2).mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.arange(4.0)[:, None]), shuffle=True)

    def state_dict(self) -> dict[str, Any]:
        return {"place": 3}


def trainer(folder: Path, *callbacks: Callback, **flags: Any) -> Trainer:
    saver = ModelCheckpoint(folder, filename="x", enable_version_counter=False, save_last=True)
    return Trainer(**{**SILENT, "logger": False, "max_epochs": 2, **flags}, callbacks=[*callbacks, saver])


def fitted(folder: Path, net: Net | None = None, **flags: Any) -> Trainer:
    torch.manual_seed(1)
    run = trainer(folder, **{"plugins": TorchCheckpointIO(), **flags})
    run.fit(net or Net(), datamodule=Data())
    return run


def test_a_file_has_lightnings_layout(tmp_path: Path) -> None:
    """Its keys, its loops' counters and its numbered optimizer states are those of Lightning, and it loads safely."""
    fitted(tmp_path)
    found = torch.load(tmp_path / "x.ckpt", weights_only=True)
    wanted = {"epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "callbacks", "lr_schedulers"}
    assert set(found) == wanted | {"optimizer_states", "hparams_name", "hyper_parameters", "Data", "lt_core"}
    assert (found["epoch"], found["global_step"], found["Data"]) == (1, 8, {"place": 3})
    assert found["hyper_parameters"] == {"size": 2, "thing": None}
    assert set(found["optimizer_states"][0]["state"]) == {0, 1}
    assert found["optimizer_states"][0]["param_groups"][0]["params"] == [0, 1]
    assert set(found["loops"]) == {"fit_loop", "validate_loop", "test_loop", "predict_loop"}
    fit = found["loops"]["fit_loop"]
    ended = {"ready": 2, "started": 2, "processed": 2, "completed": 1}
    assert fit["epoch_progress"] == {"total": ended, "current": ended}
    whole = dict.fromkeys(("ready", "started", "processed", "completed"), 4)
    assert fit["epoch_loop.batch_progress"] == {
        "total": dict.fromkeys(whole, 8),
        "current": whole,
        "is_last_batch": True,
    }
    assert fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"] == 8


@pytest.mark.filterwarnings("ignore:.*Only best_model_path")
def test_a_resume_is_exact(tmp_path: Path) -> None:
    """A run resumed in mid-epoch from such a file ends with the bits of one that was not interrupted."""

    class Saves(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 6:
                trainer.request_checkpoint(tmp_path / "middle.ckpt")

    torch.manual_seed(1)
    whole = Net()
    trainer(tmp_path, Saves(), plugins=TorchCheckpointIO()).fit(whole, datamodule=Data())
    for plugins in ([TorchCheckpointIO()], []):
        rest = Net()
        trainer(tmp_path / "rest", plugins=plugins).fit(rest, datamodule=Data(), ckpt_path=tmp_path / "middle.ckpt")
        assert all(torch.equal(a, b) for a, b in zip(rest.parameters(), whole.parameters(), strict=True))


def test_every_part_has_a_place_in_the_layout(tmp_path: Path) -> None:
    """A checkpoint's tree comes back from the layout as it was, and each of its keys is Lightning's or stands apart."""
    fitted(tmp_path, plugins=[])
    tree = load_checkpoint(tmp_path / "x.ckpt")
    layout = to_layout(tree)
    assert list(from_layout(layout, "x")) == list(tree)
    assert (
        from_layout(layout, "x")["optimizer_states"][0]["param_groups"] == tree["optimizer_states"][0]["param_groups"]
    )
    theirs = {"epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "callbacks", "Data"}
    assert set(tree) - OWN_KEYS == theirs | {"hparams_name", "hyper_parameters"}


@pytest.mark.parametrize("key", ["MixedPrecision", "native_amp_scaling_state"])
def test_the_state_of_a_loss_scale_travels(key: str) -> None:
    """The scale stands under Lightning's name for it, and comes over from files of Lightning, old ones too."""
    scale = {
        "scale": 1024.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 7,
    }
    assert to_layout({"precision": {"16-mixed": {**scale, "uncounted": True}}})["MixedPrecision"] == scale
    tree = imported({"state_dict": {}, key: scale}, "x")
    assert tree["precision"] == {"16-mixed": scale}
    assert key not in tree


def test_a_batch_of_lightning_is_done_in_its_end_hook() -> None:
    """In a file that Lightning saved in on_train_batch_end the batch and its step count."""
    counts = {"ready": 2, "started": 2, "processed": 2, "completed": 1}
    fit = {
        "epoch_progress": {"current": {"processed": 1, "completed": 1}},
        "epoch_loop.batch_progress": {"current": counts, "is_last_batch": False},
        "epoch_loop.state_dict": {"_batches_that_stepped": 5},
    }
    progress = imported({"state_dict": {}, "global_step": 6, "loops": {"fit_loop": fit}}, "x")["progress"]
    assert (progress["epoch"], progress["batch"], progress["step"]) == (1, 2, 6)


@pytest.mark.parametrize("plugins", [[], [TorchCheckpointIO()]])
def test_last_and_load_from_checkpoint_read_the_file(tmp_path: Path, plugins: list[Any]) -> None:
    """`"last"`, `"best"` and load_from_checkpoint find the format by themselves; other models' files are left."""
    net = Net()
    run = fitted(tmp_path, net)
    loaded = Net.load_from_checkpoint(tmp_path / "x.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), net.parameters(), strict=True))
    assert find_last([tmp_path], parameter_signature(net.state_dict())) is not None
    assert find_last([tmp_path], parameter_signature(Net(3).state_dict())) is None
    again = trainer(tmp_path, plugins=plugins, max_epochs=3)
    again.fit(Net(), datamodule=Data(), ckpt_path="last")
    assert again.global_step == 12
    run.test(Judged(), DataLoader(torch.ones(2, 1)), ckpt_path="best", verbose=False)  # type: ignore[arg-type]


class Judged(Net):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("x", self.layer(batch).sum())


@pytest.mark.filterwarnings("ignore:.*Only best_model_path")
def test_objects_are_made_with_consent_alone(tmp_path: Path) -> None:
    """A file that holds objects is refused, with the ways to consent, and read where consent was given."""
    fitted(tmp_path, Net(thing=Thing()))
    path = tmp_path / "x.ckpt"
    with pytest.raises(CheckpointError, match=r"Thing.*weights_only=False"):
        Net.load_from_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"Thing.*weights_only=False"):
        trainer(tmp_path, plugins=TorchCheckpointIO()).fit(Net(), datamodule=Data(), ckpt_path=path)
    assert isinstance(Net.load_from_checkpoint(path, weights_only=False).hparams.thing, Thing)
    assert Net.load_from_checkpoint(path, thing=5, weights_only=False).hparams.thing == 5
    for plugins, given in ([TorchCheckpointIO(weights_only=False)], None), ([], False):
        again = trainer(tmp_path / "again", plugins=plugins, max_epochs=3)
        again.fit(Net(), datamodule=Data(), ckpt_path=path, weights_only=given)
        assert again.global_step == 12
    with pytest.raises(CheckpointError, match="Thing"):  # what one trainer was allowed, nobody else is
        Net.load_from_checkpoint(path)


def test_a_header_is_read_without_running_anything(tmp_path: Path) -> None:
    """To peek makes no object of the file."""

    class Noted:
        def __reduce__(self) -> Any:
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    tree = {"state_dict": {"w": torch.ones(2, 3)}, "progress": {"step": 4}, "bad": Noted()}
    TorchCheckpointIO().save(tree, tmp_path / "x.ckpt")
    header = TorchCheckpointIO().peek(tmp_path / "x.ckpt")
    assert header["progress"] == {"step": 4}
    assert header["parameters"] == parameter_signature(tree["state_dict"])
    TorchCheckpointIO().verify(tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError):
        TorchCheckpointIO().load(tmp_path / "x.ckpt")
    assert not (tmp_path / "ran").exists()


class JsonIO:
    """A store of the user's own: JSON, with tensors as lists, in a file or in a folder."""

    collective = False

    def __init__(self, folder: bool = False) -> None:
        self.folder = folder

    def place(self, path: str) -> Path:
        return Path(path) / "state.json" if self.folder or Path(path).is_dir() else Path(path)

    def save(self, tree: dict[str, Any], path: str) -> None:
        def plain(value: Any) -> Any:
            return {"tensor": value.tolist()} if isinstance(value, torch.Tensor) else repr(value)

        self.place(path).parent.mkdir(exist_ok=True)
        kept = {k: tree[k] for k in ("state_dict", "progress", "hyper_parameters", "epoch", "global_step")}
        self.place(path).write_text("json:" + json.dumps(kept, default=plain))

    def load(self, path: str) -> dict[str, Any]:
        text = self.place(path).read_text(encoding="utf-8")
        assert text.startswith("json:")

        def built(found: dict[str, Any]) -> Any:
            return torch.tensor(found["tensor"]) if set(found) == {"tensor"} else found

        tree: dict[str, Any] = json.loads(text[5:], object_hook=built)
        return tree

    def peek(self, path: str) -> dict[str, Any]:
        return {"progress": self.load(path)["progress"]}

    def remove(self, path: str) -> None:
        self.place(path).unlink()

    def wait(self) -> None:
        pass


@pytest.mark.parametrize("store", [JsonIO, lambda: JsonIO(folder=True)])
def test_a_store_of_the_users_is_honoured(tmp_path: Path, store: Callable[[], JsonIO]) -> None:
    """load_from_checkpoint and `"last"` read what a trainer's own store wrote, a file or a folder."""
    net = Net()
    run = fitted(tmp_path, net, plugins=store())
    loaded = Net.load_from_checkpoint(tmp_path / "x.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), net.parameters(), strict=True))
    assert run._run is not None
    other = trainer(tmp_path, plugins=store())
    other.test(Judged(), DataLoader(torch.ones(2, 1)), ckpt_path="last", verbose=False)  # type: ignore[arg-type]
    assert other.resumed_from is not None
    assert Path(other.resumed_from).parent == tmp_path


class Named(CheckpointIO):
    """A store with the names that Lightning's have, whose files only it can read."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        with open(path, "wb") as file:
            file.write(b"mine")
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str, map_location: Any = None) -> dict[str, Any]:
        with open(path, "rb") as file:
            assert file.read(4) == b"mine"
            found: dict[str, Any] = torch.load(BytesIO(file.read()), map_location, weights_only=False)
        return found

    def remove_checkpoint(self, path: str) -> None:
        Path(path).unlink()


class Bare:
    """The same without a base class, and with the arguments of newer versions; its files are plain ones."""

    consents: list[Any] = []  # what each read was given

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        torch.save(checkpoint, path)

    def load_checkpoint(self, path: str, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        self.consents.append(weights_only)
        found: dict[str, Any] = torch.load(path, map_location, weights_only=weights_only is not False)
        return found

    def remove_checkpoint(self, path: str) -> None:
        Path(path).unlink()


class Noting(TorchCheckpointIO):
    """A store that adds an entry to what it is given, and takes it out again."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        super().save_checkpoint({**checkpoint, "noted": 1}, path, storage_options)

    def load_checkpoint(self, path: str, map_location: Any = None) -> dict[str, Any]:  # type: ignore[override]
        found = super().load_checkpoint(path, map_location)
        assert found.pop("noted") == 1
        return found


@pytest.mark.parametrize("wrap", [lambda io: io, AsyncCheckpointIO])
@pytest.mark.parametrize("kind", [Named, Bare, Noting])
def test_a_store_with_lightnings_names_is_honoured(tmp_path: Path, kind: Any, wrap: Any) -> None:
    """Such a store writes, removes and reads each checkpoint: of a path, of `"last"`, and without a trainer."""
    one, net = trainer(tmp_path, plugins=wrap(kind())), Net()
    one.fit(net, datamodule=Data())
    one.save_checkpoint(tmp_path / "end" / "y.ckpt")
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["last.ckpt", "x.ckpt"]
    loaded = Net.load_from_checkpoint(tmp_path / "end" / "y.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), net.parameters(), strict=True))
    assert isinstance(kind().load_checkpoint(str(tmp_path / "x.ckpt"))["state_dict"], dict)
    for word in ("last", tmp_path / "end" / "y.ckpt"):
        other = trainer(tmp_path, plugins=kind(), max_epochs=3)
        other.fit(Net(), datamodule=Data(), ckpt_path=word)
        assert other.resumed_from is not None
        assert other.global_step == 12
    assert find_last([tmp_path], parameter_signature(net.state_dict())) is not None


def test_a_store_with_lightnings_names_is_given_the_consent(tmp_path: Path) -> None:
    """Where it takes `weights_only`, it gets what the call was given; objects are kept then."""
    trainer(tmp_path, plugins=Bare()).fit(Net(thing=Thing()), datamodule=Data())
    with pytest.raises(Exception, match="Weights only load failed"):
        trainer(tmp_path, plugins=Bare(), max_epochs=3).fit(Net(), datamodule=Data(), ckpt_path=tmp_path / "x.ckpt")
    other = trainer(tmp_path, plugins=Bare(), max_epochs=3)
    other.fit(Net(), datamodule=Data(), ckpt_path=tmp_path / "x.ckpt", weights_only=False)
    assert Bare.consents[-1] is False
    assert other.global_step == 12


def test_a_hyperparameter_that_no_store_keeps_is_left_out(tmp_path: Path) -> None:
    """A lambda as a hyper-parameter does not end the run at its first save: its text is kept, with a warning."""
    with pytest.warns(UserWarning, match="keeps only the text of thing"):
        run = fitted(tmp_path, Net(3, lambda: 1))
    assert run.global_step == 8
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)["hyper_parameters"]
    assert kept["size"] == 3
    assert "lambda" in kept["thing"]["$repr"]
    assert Net.load_from_checkpoint(tmp_path / "x.ckpt", thing=Thing()).layer.out_features == 3
