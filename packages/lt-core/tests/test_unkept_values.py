"""What a checkpoint cannot keep is refused before the first batch, and what a hook adds ends the run at its save."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import SILENT
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lt_core import Callback, LightningDataModule, LightningModule, Trainer
from lt_core.callbacks import ModelCheckpoint
from lt_core.checkpoint import AsyncCheckpointIO, TorchCheckpointIO, load_checkpoint
from lt_core.checkpoint.format.refused import without_refused
from lt_interface import CheckpointError, ConfigError


class Thing:
    """An object, which a file of plain values cannot hold."""

    def __call__(self, epoch: int) -> float:
        return 1.0


class Schedule:
    """A factor that keeps an object in its state."""

    def __init__(self) -> None:
        self.thing = Thing()

    def __call__(self, epoch: int) -> float:
        return 1.0


class Extra(nn.Module):
    def get_extra_state(self) -> Any:
        return {"deep": Thing()}

    def set_extra_state(self, state: Any) -> None:
        pass


class Net(LightningModule):
    """Module that counts its steps."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        return self.layer(batch[0]).sum()

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)


class WithSchedule(Net):
    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        return [optimizer], [LambdaLR(optimizer, Schedule())]


class WithExtra(Net):
    def __init__(self) -> None:
        super().__init__()
        self.extra = Extra()


class WithGroup(Net):
    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        optimizer.param_groups[0]["tag"] = Thing()
        return optimizer


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return batches()

    def state_dict(self) -> dict[str, Any]:
        return {"place": [Thing()]}


class Set(TensorDataset):
    def state_dict(self) -> dict[str, Any]:
        return {"thing": Thing()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.ones(1),)] * 4)

    def state_dict(self) -> dict[str, Any]:
        return {"thing": Thing()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Locked(Stream):
    def state_dict(self) -> dict[str, Any]:
        return {"lock": threading.Lock()}


class Own(list[Any]):
    """Batches that save their own place, and that with something that cannot even be copied."""

    def state_dict(self) -> dict[str, Any]:
        return {"lock": threading.Lock()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Keeps(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"a": Thing(), "b": 1, "c": {"d": Thing()}}


def batches() -> Any:
    return DataLoader(TensorDataset(torch.ones(4, 1)))


def trainer(folder: Path, *callbacks: Callback, **flags: Any) -> Trainer:
    saver = ModelCheckpoint(folder, filename="x", enable_version_counter=False)
    return Trainer(**{**SILENT, "logger": False, "max_epochs": 2, **flags}, callbacks=[*callbacks, saver])


@pytest.mark.parametrize(
    ("module", "data", "where"),
    [
        (WithSchedule, batches, "checkpoint['lr_schedulers'][0]['lr_lambdas'][0]['thing']: a value of type"),
        (WithExtra, batches, "checkpoint['state_dict']['extra._extra_state']['deep']: a value of type"),
        (WithGroup, batches, "checkpoint['optimizer_states'][0]['param_groups'][0]['tag']: a value of type"),
        (Net, Data, "Data.state_dict()['place'][0]: a value of type"),
        (
            Net,
            lambda: DataLoader(Set(torch.ones(4, 1))),
            "checkpoint['data']['train']['leaves'][0]['dataset']['thing']",
        ),
        (Net, lambda: DataLoader(Stream()), "checkpoint['data']['train']['leaves'][0]['place']['thing']: a value of"),
        (Net, lambda: DataLoader(Locked()), "checkpoint['data']['train']['leaves'][0]['place']['lock']: a value of"),
        (Net, lambda: Own([torch.ones(1)]), "checkpoint['data']['train']['leaves'][0]['user']['lock']: a value of"),
    ],
)
def test_a_part_that_cannot_be_kept_is_refused_before_the_first_batch(
    tmp_path: Path, module: Callable[[], Net], data: Callable[[], Any], where: str
) -> None:
    """Each part without a hook of the user's is tried, and the error names the path and both ways out."""
    net = module()
    with pytest.raises(ConfigError) as caught:
        trainer(tmp_path).fit(net, data())
    assert where in str(caught.value)
    assert "Keep numbers, strings" in str(caught.value)
    assert "Trainer(plugins=TorchCheckpointIO())" in str(caught.value)
    assert net.steps == 0


def test_all_that_cannot_be_kept_is_listed_at_once(tmp_path: Path) -> None:
    """Two values of a callback and one of the optimizer make one error with three lines."""
    with pytest.raises(ConfigError) as caught:
        trainer(tmp_path, Keeps()).fit(WithGroup(), batches())
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines[1:]] == [
        "  1. Keeps.state_dict()['a']",
        "  2. Keeps.state_dict()['c']['d']",
        "  3. checkpoint['optimizer_states'][0]['param_groups'][0]['tag']",
    ]


@pytest.mark.filterwarnings("ignore:.*no optimizer")
def test_a_lazy_parameter_is_not_refused(tmp_path: Path) -> None:
    """A parameter that gets its shape by the first batch is no problem before it."""

    class Lazy(Net):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LazyLinear(1)

        def configure_optimizers(self) -> None:
            return None

    trainer(tmp_path).fit(Lazy(), batches())
    assert load_checkpoint(tmp_path / "x.ckpt")["state_dict"]["layer.weight"].shape == (1, 1)


class Adds(Callback):
    """A callback whose hook adds an object and a number, from a step on."""

    def __init__(self, since: int = 0) -> None:
        self.since = since
        self.errors: list[BaseException] = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = {"number": 5, "thing": Thing()} if trainer.global_step > self.since else {}

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self.errors.append(exception)


class ModuleAdds(Net):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = {"number": 5, "thing": Thing()}


class LateOptimizer(Net):
    """Module that puts an object into its optimizer's state in the last batch of an epoch."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            self.trainer.optimizers[0].state[self.layer.weight]["thing"] = Thing()


@pytest.mark.parametrize("store", [None, AsyncCheckpointIO])
@pytest.mark.parametrize(
    ("module", "callback", "where"),
    [
        (Net, Adds, "checkpoint['mine']['thing']"),
        (ModuleAdds, Callback, "checkpoint['mine']['thing']"),
        (LateOptimizer, Callback, "checkpoint['optimizer_states'][0]['state']['layer.weight']['thing']"),
    ],
)
def test_what_a_hook_adds_ends_the_run_at_its_save(
    tmp_path: Path, module: Callable[[], Net], callback: Callable[[], Callback], where: str, store: Any
) -> None:
    """The file is written without the entry, then the run ends with an error that names it and the ways out."""
    net, plugins = module(), [] if store is None else [store()]
    run = trainer(tmp_path, callback(), plugins=plugins)
    with pytest.raises(CheckpointError) as caught:
        run.fit(net, batches())
    assert where in str(caught.value)
    assert "Trainer(plugins=TorchCheckpointIO())" in str(caught.value)
    assert f"checkpoint {tmp_path / 'x.ckpt'}: it is written without these entries" in str(caught.value)
    assert run.global_step == net.steps == 4
    tree = load_checkpoint(tmp_path / "x.ckpt")
    assert tree.get("mine", {"number": 5}) == {"number": 5}
    assert run.checkpoint_callback is not None
    assert run.checkpoint_callback.best_model_path == str(tmp_path / "x.ckpt")
    again = trainer(tmp_path)
    again.fit(Net(), batches(), ckpt_path=tmp_path / "x.ckpt")
    assert again.global_step == 8


def test_what_a_hook_adds_later_ends_the_run_too(tmp_path: Path) -> None:
    """A save that worked does not mean that later ones may fail: only a disk's refusal is survived."""
    adds = Adds(since=4)
    run = trainer(tmp_path, adds, max_epochs=3)
    with pytest.raises(CheckpointError, match="thing"):
        run.fit(Net(), batches())
    assert run.global_step == 8
    assert len(adds.errors) == 1


def test_a_direct_save_raises_and_leaves_the_rest(tmp_path: Path) -> None:
    """`trainer.save_checkpoint` writes what can be kept, too, and raises where it was called."""
    run = Trainer(**SILENT, logger=False, enable_checkpointing=False, max_epochs=1, callbacks=[Adds()])
    run.fit(Net(), batches())
    with pytest.raises(CheckpointError, match=r"checkpoint\['mine'\]\['thing'\]"):
        run.save_checkpoint(tmp_path / "x.ckpt")
    assert load_checkpoint(tmp_path / "x.ckpt")["mine"] == {"number": 5}


@pytest.mark.parametrize("data", [lambda: DataLoader(Locked(), batch_size=None), lambda: Own([(torch.ones(1),)] * 4)])
def test_a_state_that_cannot_be_copied_ends_no_run_that_saves_nothing(data: Any) -> None:
    """Data whose own place is beyond copying is trained to its end where no checkpoint is written."""
    run = Trainer(**SILENT, logger=False, enable_checkpointing=False, max_epochs=2)
    run.fit(Net(), data())
    assert run.global_step == 8


def test_a_full_disk_is_survived_and_a_lost_value_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two files that are due together, the one that the disk refuses is warned of; a lost value is an error."""
    from lt_core.checkpoint.format.safetensors_io import SafetensorsIO

    save = SafetensorsIO.save

    def full(self: Any, tree: Any, path: Any) -> None:
        if "last" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, tree, path)

    monkeypatch.setattr(SafetensorsIO, "save", full)
    saver = ModelCheckpoint(tmp_path, filename="x", save_last=True)
    run = Trainer(**SILENT, logger=False, max_epochs=2, callbacks=[Adds(), saver])
    with (
        pytest.warns(UserWarning, match=r"last\.ckpt: not written, training goes on\. OSError"),
        pytest.raises(CheckpointError, match="thing"),
    ):
        run.fit(Net(), batches())
    assert run.global_step == 4
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["x.ckpt"]


@pytest.mark.parametrize("store", [TorchCheckpointIO, lambda: AsyncCheckpointIO(TorchCheckpointIO())])
def test_a_store_that_keeps_objects_keeps_them_all(tmp_path: Path, store: Callable[[], Any]) -> None:
    """With TorchCheckpointIO no part is refused, and the objects are in the file."""
    adds = Adds()
    run = trainer(tmp_path, Keeps(), adds, plugins=store())
    run.fit(WithGroup(), DataLoader(Set(torch.ones(4, 1))))
    found = torch.load(tmp_path / "x.ckpt", weights_only=False)
    assert isinstance(found["mine"]["thing"], Thing)
    assert isinstance(found["callbacks"]["Keeps"]["c"]["d"], Thing)
    assert isinstance(found["optimizer_states"][0]["param_groups"][0]["tag"], Thing)
    assert run.global_step == 8


def test_a_store_that_keeps_objects_refuses_what_cannot_be_pickled(tmp_path: Path) -> None:
    """A function without a name of its own cannot be kept there either, and is refused before the first batch."""

    class Local(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"f": lambda: None}

    net = Net()
    with pytest.raises(ConfigError, match=r"Local\.state_dict\(\)\['f'\]: this cannot be pickled"):
        trainer(tmp_path, Local(), plugins=TorchCheckpointIO()).fit(net, batches())
    assert net.steps == 0


def test_a_store_of_the_users_is_not_judged_by_ours(tmp_path: Path) -> None:
    """A store that says nothing of what it refuses gets the values as they are."""
    seen = []

    class Own:
        collective = False

        def save(self, tree: dict[str, Any], path: str) -> None:
            seen.append(tree["callbacks"]["Keeps"]["a"])

        def load(self, path: str) -> dict[str, Any]:
            raise OSError

        peek = load

        def remove(self, path: str) -> None:
            pass

        def wait(self) -> None:
            pass

    trainer(tmp_path, Keeps(), plugins=Own()).fit(Net(), batches())
    assert [isinstance(value, Thing) for value in seen] == [True, True]


def test_entries_go_alone() -> None:
    """Of dicts the refused entry goes, of lists and tuples the whole, and the tree that was given stays as it was."""
    tree = {"a": {"b": Thing(), "c": 1}, "d": [1, Thing()], "e": [{"f": Thing(), "g": 2}], "h": Thing(), "i": (3,)}
    kept, problems = without_refused(tree, "tree")
    assert kept == {"a": {"c": 1}, "e": [{"g": 2}], "i": (3,)}
    assert [p.where for p in problems] == ["tree['a']['b']", "tree['d'][1]", "tree['e'][0]['f']", "tree['h']"]
    assert set(tree) == set("adehi")
    assert without_refused({"k": {Thing(): 1}, "l": 1})[0] == {"l": 1}
