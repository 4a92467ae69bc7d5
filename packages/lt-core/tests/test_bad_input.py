"""Give the trainer what cannot work, and check the one clear error: where, rule, value, fix."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import nn
from torch.utils.data import DataLoader

from lt_core import Callback, LightningDataModule, LightningModule, Trainer
from lt_core.callbacks import EarlyStopping, ModelCheckpoint
from lt_core.checkpoint import load_checkpoint
from lt_interface.errors import ConfigError, MisconfigurationException

DATA = [torch.ones(2, 1)] * 3


def trainer(**flags: Any) -> Trainer:
    return Trainer(**{**QUIET, "max_epochs": 1, **flags})


class Empty(LightningModule):
    """Module of a layer and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.steps = 0


class Net(Empty):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        self.log("loss", 1.0, on_epoch=True)
        return self.loss(self.layer(batch), batch_idx)

    def loss(self, output: torch.Tensor, batch_idx: int) -> Any:
        return output.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def error_of(kind: type[BaseException], call: Any) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


# ------------------------------------------------------------------ flags


@pytest.mark.parametrize(
    ("flag", "value", "kind", "message"),
    [
        ("max_epoch", 3, TypeError, "the Trainer has no flag 'max_epoch'. Did you mean \"max_epochs\"?"),
        ("loggers", 1, TypeError, "the Trainer has no flag 'loggers'. Write logger=[...]."),
        ("strategy", "singledevice", ValueError, "no strategy of that name. Installed: "),
        ("strategy", "singledevice", ValueError, 'Did you mean "single_device"?'),
        ("profiler", "passthru", ValueError, 'Did you mean "passthrough"?'),
        ("max_epochs", "3", TypeError, "must be an integer of at least -1 (no limit). Write 3, without quotes."),
        ("max_epochs", -3, ValueError, "must be an integer of at least -1 (no limit)."),
        ("accumulate_grad_batches", 0, ValueError, "must be an integer of at least 1."),
        ("gradient_clip_algorithm", "nrm", ValueError, "must be 'norm' or 'value'. Did you mean \"norm\"?"),
        ("limit_train_batches", 1.5, ValueError, "(float from 0.0 to 1.0). Write 1.0 for all."),
        ("callbacks", 3, TypeError, "each callback must be an instance of lt_core.Callback, and int is none."),
    ],
)
def test_unknown_and_wrong_flags(flag: str, value: Any, kind: type[Exception], message: str) -> None:
    """A flag's error begins with the call as it was written, and says what to write instead."""
    text = error_of(kind, lambda: trainer(**{flag: value}))
    assert text.startswith(f"Trainer({flag}={value!r}): ")
    assert message in text
    assert "\n" not in text


def test_flags_that_exclude_each_other(tmp_path: Path) -> None:
    """Two flags that contradict are both shown."""
    text = error_of(ConfigError, lambda: trainer(callbacks=[ModelCheckpoint(tmp_path)]))
    assert text == (
        "Trainer(enable_checkpointing=False): enable_checkpointing is off, and callbacks holds ModelCheckpoint. "
        "Leave out enable_checkpointing or the callback."
    )


def test_all_problems_of_the_flags_stand_in_one_report() -> None:
    """Each problem has its line and its number; a wrong name among them makes it a TypeError too."""
    text = error_of(TypeError, lambda: trainer(max_epoch=3, max_steps=-5, limit_val_batches="x"))
    lines = text.splitlines()
    assert lines[0] == "3 problems:"
    assert [line[:5] for line in lines[1:]] == ["  1. ", "  2. ", "  3. "]
    assert all(any(flag in line for line in lines) for flag in ("max_epoch=3", "max_steps=-5", "limit_val_batches='x'"))


# ------------------------------------------------------------------ module and data


def test_a_module_without_anything_is_told_all_that_it_lacks() -> None:
    """No training_step, no configure_optimizers and no loader are three lines of one report."""
    text = error_of(ConfigError, lambda: trainer().fit(Empty()))
    assert text.splitlines() == [
        "3 problems:",
        "  1. Empty.training_step: Trainer.fit needs it, and it is not defined. "
        "Write: def training_step(self, batch, batch_idx).",
        "  2. Trainer.fit: there is no train_dataloader. Write trainer.fit(model, train_dataloaders=...), give a "
        "datamodule with train_dataloader, or define train_dataloader(self) in the module.",
        "  3. Empty.configure_optimizers: Trainer.fit needs it, and it is not defined. "
        "Write: def configure_optimizers(self): return torch.optim.Adam(self.parameters()).",
    ]


def test_a_misspelt_method_is_suggested() -> None:
    """A method whose name is nearly right is named in the error."""

    class Misspelt(Empty):
        def trainning_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    text = error_of(ConfigError, lambda: trainer().fit(Misspelt(), DATA))
    assert 'Did you mean "trainning_step"?' in text


def test_loaders_and_a_data_module_exclude_each_other() -> None:
    """Only one of them can give the data."""
    text = error_of(MisconfigurationException, lambda: trainer().fit(Net(), DATA, datamodule=LightningDataModule()))
    assert text.startswith(
        "Trainer.fit(train_dataloaders, datamodule): loaders and a data module exclude each other. "
        "Leave out train_dataloaders, or datamodule."
    )


def test_hooks_that_can_not_be_called_show_the_right_signature() -> None:
    """Hooks of module and callbacks are checked together, before anything runs."""

    class Hooked(Net):
        def on_train_batch_end(self, a: Any, b: Any, c: Any, d: Any) -> None:  # type: ignore[override]
            pass

    class Other(Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str, more: int) -> None:  # type: ignore[override]
            raise AssertionError("never called")

    lines = error_of(ConfigError, lambda: trainer(callbacks=[Other()]).fit(Hooked(), DATA)).splitlines()
    assert lines[0] == "2 problems:"
    assert lines[1].startswith(
        "  1. Hooked.on_train_batch_end: the trainer cannot call this hook with its arguments. Got"
    )
    assert lines[1].rstrip(".").endswith("Write: def on_train_batch_end(self, outputs, batch, batch_idx)")
    assert lines[2].rstrip(".").endswith("Write: def setup(self, trainer, pl_module, stage)")


@pytest.mark.parametrize("loader", [DataLoader([]), []])  # type: ignore[arg-type]
def test_a_loader_without_a_batch(loader: Any) -> None:
    """Zero length is an error that names the loader, and where to look."""
    text = error_of(ConfigError, lambda: trainer().fit(Net(), loader))
    assert text == (
        "train_dataloader: a loader must have at least one batch. Got a loader of length 0. "
        "Check the dataset's length, batch_size and drop_last, or set the limit to 0."
    )


def test_what_is_no_loader() -> None:
    """A number is no source of batches, and a dataset's samples are no batches."""
    text = error_of(TypeError, lambda: trainer().fit(Net(), 3))
    assert text.startswith("Trainer.fit(train_dataloaders=int): this is no source of batches. Give a DataLoader")


# ------------------------------------------------------------------ the loss


@pytest.mark.parametrize("flags", [{}, {"accumulate_grad_batches": 2}])
@pytest.mark.parametrize("own_step", [False, True])
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o: o, "the loss must be a scalar. Got shape (2, 1). Reduce it, for example with loss.mean()."),
        (
            lambda o: o.detach().sum(),
            "the loss must depend on parameters that require grad. Compute it from the model's output, without "
            "detach(), .item() or torch.no_grad().",
        ),
        (lambda o: {"los": o.sum()}, "a dict that is returned must have the key \"loss\". Got keys ['los']. Add it."),
        (
            lambda o: 3.0,
            'it must return a loss tensor, a dict with the key "loss", or None. Got float. Return the loss.',
        ),
        (
            lambda o: {"loss": 3.0},
            'it must return a loss tensor, a dict with the key "loss", or None. Got float. Return the loss.',
        ),
    ],
)
def test_losses_that_can_not_be_used(loss: Any, message: str, own_step: bool, flags: dict[str, Any]) -> None:
    """Module, step and batch are named with what the loss must be, in every form of the step."""

    class Wrong(Net):
        def loss(self, output: torch.Tensor, batch_idx: int) -> Any:
            return loss(output)

    class Own(Wrong):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)

    net = Own() if own_step else Wrong()
    text = error_of(MisconfigurationException, lambda: trainer(**flags).fit(net, DATA))
    assert text == f"{type(net).__name__}.training_step, batch 0: {message}"


def test_a_model_that_is_frozen_says_so() -> None:
    """Where no parameter requires grad, that is the reason given."""
    net = Net()
    net.requires_grad_(False)
    text = error_of(MisconfigurationException, lambda: trainer().fit(net, DATA))
    assert text.endswith("must depend on parameters that require grad. All parameters are frozen: unfreeze some.")


def test_other_errors_of_the_backward_pass_stay_as_they_are() -> None:
    """An error that is not the loss's own fault is not dressed up."""

    class Twice(Net):
        def loss(self, output: torch.Tensor, batch_idx: int) -> Any:
            total = output.square().sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

    text = error_of(RuntimeError, lambda: trainer().fit(Twice(), DATA))
    assert text.startswith("Trying to backward through the graph a second time")


class Inverse(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 / (x * 0)


def test_a_loss_that_is_not_finite_names_batch_and_module() -> None:
    """With detect_anomaly the first submodule whose output is bad is found, once, and logging is not repeated."""

    class Bad(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head = Inverse()

        def loss(self, output: torch.Tensor, batch_idx: int) -> Any:
            return (self.head(output) if batch_idx == 1 else output).sum()

    text = error_of(ValueError, lambda: trainer(detect_anomaly=True).fit(Bad(), DATA))
    assert text.startswith("Bad.training_step, epoch 0, batch 1: the loss must be finite. Got ")
    assert "first from module head (Inverse). " in text
    trainer().fit(Bad(), DATA)  # nobody asked to look


def test_a_batch_that_is_not_finite_is_told() -> None:
    """When the data itself is bad, the error says that too."""
    bad = [torch.ones(2, 1), torch.tensor([[1.0], [float("nan")]])]
    text = error_of(ValueError, lambda: trainer(detect_anomaly=True).fit(Net(), bad))
    assert "batch 1: the loss must be finite. Got nan, first from module layer (Linear)" in text
    assert "the batch itself holds values that are not finite" in text


# ------------------------------------------------------------------ monitors and checkpoints


def test_a_monitor_that_nobody_logs_lists_what_is_logged(tmp_path: Path) -> None:
    """EarlyStopping and ModelCheckpoint name the metrics that there are."""
    saving = ModelCheckpoint(tmp_path, monitor="los")
    for callback, flags in ((EarlyStopping("los"), {}), (saving, {"enable_checkpointing": True})):
        text = error_of(RuntimeError, lambda c=callback, f=flags: trainer(callbacks=[c], **f).fit(Net(), DATA))
        assert text.startswith(f"{type(callback).__name__}(monitor='los'): no metric of that name was logged.")
        assert "loss" in text.split("Logged")[1]


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    """A folder where no checkpoint can be written is reported before the first batch."""
    (tmp_path / "file").write_text("")
    folder, net = tmp_path / "file" / "inside", Net()
    run = trainer(callbacks=[ModelCheckpoint(folder)], enable_checkpointing=True)
    text = error_of(ConfigError, lambda: run.fit(net, DATA))
    assert text.startswith(f"ModelCheckpoint(dirpath={str(folder)!r}): checkpoints must be writable there. Got ")
    assert text.endswith("Choose another folder.")
    assert net.steps == 0


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that cannot take one checkpoint is reported before the first batch."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))
    net = Net()
    run = trainer(callbacks=[ModelCheckpoint(tmp_path)], enable_checkpointing=True)
    text = error_of(ConfigError, lambda: run.fit(net, DATA))
    assert "the disk must have room for a checkpoint. Got 0.0 MB free" in text
    assert net.steps == 0


def test_a_disk_that_fills_up_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that fails is warned of; training goes on, and the older file stays whole."""
    from lt_core.checkpoint.format.safetensors_io import SafetensorsIO

    save, calls = SafetensorsIO.save, []

    def full(self: Any, tree: Any, path: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, tree, path)

    monkeypatch.setattr(SafetensorsIO, "save", full)
    callback = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    run = trainer(max_epochs=3, callbacks=[callback], enable_checkpointing=True)
    with pytest.warns(UserWarning, match=r"epoch=1\.ckpt: not written, training goes on\. OSError: .*No space left"):
        run.fit(Net(), DATA)
    assert run.global_step == 9
    assert sorted(p.name for p in tmp_path.glob("*.ckpt*")) == ["epoch=0.ckpt", "epoch=2.ckpt"]


def test_a_callback_whose_state_can_not_be_kept(tmp_path: Path) -> None:
    """The path to the value is named before the first batch."""

    class Keeps(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"a": [1, {"b": object()}]}

    net = Net()
    run = trainer(callbacks=[Keeps(), ModelCheckpoint(tmp_path)], enable_checkpointing=True)
    text = error_of(ConfigError, lambda: run.fit(net, DATA))
    assert text.startswith("Keeps.state_dict()['a'][1]['b']: a value of type builtins.object cannot be kept")
    assert net.steps == 0


def test_two_callbacks_with_one_state_key() -> None:
    """Two callbacks that would overwrite each other's state are refused."""

    class Keeps(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"a": 1}

    text = error_of(ConfigError, lambda: trainer(callbacks=[Keeps(), Keeps()]))
    assert "two callbacks keep their state under" in text


class Marker:
    pass


@pytest.mark.parametrize("value", [nn.ReLU, Marker(), len])
def test_hyper_parameters_that_are_objects_never_stop_a_run(tmp_path: Path, value: Any) -> None:
    """Classes, functions and objects are kept as their text, with one warning."""

    class Chosen(Net):
        def __init__(self, act: Any, width: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()

    run = trainer(max_epochs=2, callbacks=[ModelCheckpoint(tmp_path)], enable_checkpointing=True)
    with pytest.warns(UserWarning, match="a checkpoint keeps only the text of act") as given:
        run.fit(Chosen(value), DATA)
    assert len(given) == 1
    kept = load_checkpoint(run.checkpoint_callback.best_model_path)["hyper_parameters"]
    assert kept["width"] == 3
    assert set(kept["act"]) == {"$repr"}
