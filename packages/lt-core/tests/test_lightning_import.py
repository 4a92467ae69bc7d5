"""Checkpoints of PyTorch Lightning can be imported, without running what they hold."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import nn

from lt_core import LightningModule, Trainer
from lt_core.checkpoint import import_lightning, load_checkpoint, save_checkpoint
from lt_core.optim.states import load_named_states
from lt_interface import CheckpointError


def counters(**current: int) -> dict[str, Any]:
    return {"total": dict(current), "current": dict(current)}


def lightning_file(path: pathlib.Path, module: nn.Module, named: bool = False, **more: Any) -> pathlib.Path:
    """Write a file with the layout that Lightning 2.6 writes."""
    parameters = module.named_parameters() if named else module.parameters()
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    module(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    tree = {
        "epoch": 1,
        "global_step": 12,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": module.state_dict(),
        "loops": {
            "fit_loop": {
                "state_dict": {},
                "epoch_loop.state_dict": {"_batches_that_stepped": 12},
                "epoch_loop.batch_progress": {
                    **counters(ready=6, started=6, processed=6, completed=6),
                    "is_last_batch": True,
                },
                "epoch_progress": counters(ready=2, started=2, processed=2, completed=1),
            }
        },
        "callbacks": {"EarlyStopping{'monitor': 'val_loss'}": {"wait_count": 1, "best_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"last_epoch": 2}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "_instantiator": "lightning.pytorch.cli.instantiate_module"},
        "mine": {"kept": (1, 2)},
        **more,
    }
    torch.save(tree, path)
    return path


def progress(**more: Any) -> dict[str, Any]:
    """Return counters of which a test names those that are not 0."""
    return {"epoch": 0, "batch": 0, "step": 0, "samples": 0, "epoch_closed": True, "batches": 0, **more}


needs_torch = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10), reason="importing needs torch 2.10"
)


@needs_torch
def test_an_imported_checkpoint_has_the_familiar_form(tmp_path: pathlib.Path) -> None:
    """Weights, counters, hyper-parameters, callbacks, schedulers, optimizers by name and own keys come over."""
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    tree = import_lightning(lightning_file(tmp_path / "l.ckpt", module), module)
    save_checkpoint(tree, tmp_path / "ours.ckpt")
    found = load_checkpoint(tmp_path / "ours.ckpt")
    assert all(torch.equal(found["state_dict"][k], v) for k, v in module.state_dict().items())
    assert found["progress"] == progress(epoch=2, batches=6, step=12)
    assert found["hyper_parameters"] == {"lr": 0.1}
    assert found["mine"] == {"kept": (1, 2)}
    assert found["imported_from"] == "pytorch-lightning 2.6.0"
    assert found["lr_schedulers"] == [{"last_epoch": 2}]
    state = found["optimizer_states"][0]
    assert state["param_groups"][0]["params"] == [name for name, _ in module.named_parameters()]
    assert state["state"]["2.weight"]["exp_avg"].shape == (2, 4)


@needs_torch
@pytest.mark.parametrize("key", ["MixedPrecision", "MixedPrecisionPlugin", "native_amp_scaling_state"])
def test_a_loss_scale_comes_over(key: str, tmp_path: pathlib.Path) -> None:
    """A run in 16-mixed goes on with the scale of the file, under whichever name its version kept it."""
    scale = torch.amp.GradScaler("cpu", init_scale=4096.0).state_dict()
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    tree = import_lightning(lightning_file(tmp_path / "l.ckpt", module, **{key: scale}), module)
    assert tree["precision"] == {"16-mixed": scale}
    assert key not in tree


@needs_torch
def test_the_middle_of_an_epoch_is_kept(tmp_path: pathlib.Path) -> None:
    """A file saved inside an epoch opens it again."""
    loops = {
        "fit_loop": {
            "epoch_loop.state_dict": {"_batches_that_stepped": 9},
            "epoch_loop.batch_progress": {
                **counters(ready=3, started=3, processed=3, completed=3),
                "is_last_batch": False,
            },
            "epoch_progress": counters(ready=2, started=2, processed=1, completed=1),
        }
    }
    path = lightning_file(tmp_path / "l.ckpt", nn.Linear(3, 1), named=True, loops=loops)
    found = import_lightning(path)["progress"]
    assert found == progress(epoch=1, batch=3, step=9, epoch_closed=False)


@needs_torch
def test_a_file_without_loops_is_one_of_an_epochs_end(tmp_path: pathlib.Path) -> None:
    """Where only the familiar keys say how far training was, it was at the beginning of that epoch."""
    tree = import_lightning(lightning_file(tmp_path / "l.ckpt", nn.Linear(3, 2), loops=None), nn.Linear(3, 2))
    assert tree["progress"] == {"epoch": 1, "batch": 0, "step": 12, "samples": 0, "epoch_closed": True}


@needs_torch
def test_named_parameters_need_no_module(tmp_path: pathlib.Path) -> None:
    """An optimizer that was given named parameters says their names itself."""
    tree = import_lightning(lightning_file(tmp_path / "l.ckpt", nn.Linear(3, 1), named=True))
    assert set(tree["optimizer_states"][0]["state"]) == {"weight", "bias"}


@needs_torch
@pytest.mark.parametrize("module", [None, nn.Linear(5, 1), nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 1))])
def test_optimizer_states_without_names_stay_by_place(tmp_path: pathlib.Path, module: Any) -> None:
    """Names are never guessed: without a module that fits, states keep the places that they have in the file."""
    path = lightning_file(tmp_path / "l.ckpt", nn.Linear(3, 1))
    (state,) = import_lightning(path, module)["optimizer_states"]
    assert state["param_groups"][0]["params"] == [0, 1]
    assert state["state"][0]["exp_avg"].shape == (1, 3)


@needs_torch
def test_weights_only_files_import_silently(tmp_path: pathlib.Path) -> None:
    """A file without loops and optimizers gives weights and counters."""
    torch.save({"epoch": 3, "global_step": 5, "state_dict": {"w": torch.ones(1)}}, tmp_path / "l.ckpt")
    tree = import_lightning(tmp_path / "l.ckpt")
    assert tree["progress"]["epoch"] == 3
    assert "optimizer_states" not in tree


class Touch:
    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@needs_torch
def test_code_in_a_file_is_never_run(tmp_path: pathlib.Path) -> None:
    """A pickle that calls something is refused, the blocked name is given and nothing happens."""
    torch.save({"state_dict": {}, "x": Touch(tmp_path / "owned")}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="mkdir"):
        import_lightning(tmp_path / "evil.ckpt")
    assert not (tmp_path / "owned").exists()


@needs_torch
def test_damaged_and_foreign_files_are_refused(tmp_path: pathlib.Path) -> None:
    """Missing, cut and other files give this package's own error."""
    path = lightning_file(tmp_path / "l.ckpt", nn.Linear(3, 1))
    raw = path.read_bytes()
    for bad in (raw[:100], raw[: len(raw) // 2], b"", b"hello", b"\x80\x02."):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError):
            import_lightning(path)
    with pytest.raises(CheckpointError, match="no such"):
        import_lightning(tmp_path / "none.ckpt")
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="state_dict"):
        import_lightning(path)


def places(
    begun: int,
    processed: int,
    completed: int,
    batch: int,
    last: bool,
    *,
    batches: int,
    counted: int = -1,
    steps: int = -1,
) -> dict[str, Any]:
    """Return the counters of Lightning's fit loop, as it writes them where a test says."""
    counted = batch if counted == -1 else counted
    done = {"ready": batch, "started": batch, "processed": batch, "completed": counted}
    total = dict.fromkeys(("ready", "started", "processed"), batches) | {"completed": batches - batch + counted}
    return {
        "fit_loop": {
            "epoch_loop.state_dict": {"_batches_that_stepped": batches if steps == -1 else steps},
            "epoch_loop.batch_progress": {"total": total, "current": done, "is_last_batch": last},
            "epoch_progress": counters(ready=begun, started=begun, processed=processed, completed=completed),
        }
    }


# What PyTorch Lightning 2.6 writes for epochs of four batches, its step, and (epochs done, batch of the open one).
WRITTEN = {
    "at the epoch's end": (places(1, 1, 0, 4, True, batches=4), 4, (1, 0)),
    "after the fit": (places(2, 2, 2, 4, True, batches=8), 8, (2, 0)),
    "after a validation inside an epoch": (places(2, 1, 1, 2, False, batches=6, steps=5), 6, (1, 2)),
    "after the validation of an epoch's end": (places(1, 0, 0, 4, True, batches=4, steps=3), 4, (1, 0)),
    "in on_train_batch_end": (places(1, 0, 0, 3, False, batches=3, counted=2, steps=2), 3, (0, 3)),
    "at the epoch's end that max_steps brought": (places(2, 2, 1, 2, False, batches=6), 6, (1, 2)),
    "after a fit that max_steps ended": (places(2, 2, 2, 2, False, batches=6), 6, (1, 2)),
}


class Net(LightningModule):
    """Module that notes its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(3, 1), list[Any]()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append((self.current_epoch, batch_idx, int(batch[0, 0])))
        return self.layer(batch).sum()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.5)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


@needs_torch
@pytest.mark.filterwarnings("ignore:.*does not say where training stood in the data.*:UserWarning")
@pytest.mark.parametrize("place", WRITTEN)
@pytest.mark.parametrize("imported", [False, True])
def test_a_run_of_lightning_goes_on_where_it_stood(tmp_path: pathlib.Path, place: str, imported: bool) -> None:
    """Wherever Lightning wrote its file, fit goes on with the next batch, its optimizer and its scheduler."""
    loops, step, (epochs, batch) = WRITTEN[place]
    net = Net()
    rate = 0.1**epochs
    scheduler = {"step_size": 1, "gamma": 0.1, "base_lrs": [1.0], "last_epoch": epochs, "_step_count": epochs + 1}
    path = lightning_file(tmp_path / "l.ckpt", net.layer, loops=loops, global_step=step)
    tree = torch.load(path)
    tree["state_dict"] = {f"layer.{name}": value for name, value in tree["state_dict"].items()}
    tree["lr_schedulers"] = [{**scheduler, "_last_lr": [rate]}]
    tree["callbacks"] = {}
    tree["optimizer_states"][0]["param_groups"][0] |= {"lr": rate, "initial_lr": 1.0}
    torch.save(tree, path)
    if imported:
        save_checkpoint(import_lightning(path), tmp_path / "ours.safetensors")
        path = tmp_path / "ours.safetensors"
    trainer = Trainer(**QUIET, max_epochs=epochs + 2)
    rates: list[float] = []
    trainer.on("train_start")(lambda trainer: rates.append(trainer.optimizers[0].param_groups[0]["lr"]))
    trainer.fit(net, [torch.full((1, 3), float(i)) for i in range(4)], ckpt_path=path)
    rest = [(epochs, i, i) for i in range(batch, 4)]
    assert net.seen == rest + [(epochs + 1, i, i) for i in range(4)]
    assert trainer.global_step == step + len(net.seen)
    assert rates == [pytest.approx(rate)]
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 ** (epochs + 2))
    assert float(trainer.optimizers[0].state[net.layer.weight]["step"]) == 1 + len(net.seen)


@needs_torch
def test_states_by_place_of_other_parameters_are_refused(tmp_path: pathlib.Path) -> None:
    """Where the file does not name its parameters, averages of other shapes than those at their places are refused."""
    path = lightning_file(tmp_path / "l.ckpt", nn.Linear(3, 1), lr_schedulers=[], callbacks={})
    tree = import_lightning(path)
    groups = tree["optimizer_states"][0]["param_groups"]
    groups[0]["params"] = groups[0]["params"][::-1]
    net = nn.Linear(3, 1)
    with pytest.raises(CheckpointError, match=r"param_groups\[0\]: the parameters must come in the checkpoint's order"):
        load_named_states(net, [torch.optim.Adam(net.parameters())], tree["optimizer_states"])


@needs_torch
def test_an_open_epoch_without_its_place_in_the_data_is_a_warning(tmp_path: pathlib.Path) -> None:
    """Lightning's files lack the place in the data: the warning says behind how many batches it goes on."""
    path = lightning_file(tmp_path / "l.ckpt", nn.Linear(3, 1), loops=WRITTEN["in on_train_batch_end"][0], callbacks={})
    tree = torch.load(path)
    tree["state_dict"] = {f"layer.{name}": value for name, value in tree["state_dict"].items()}
    tree["lr_schedulers"] = [
        torch.optim.lr_scheduler.StepLR(torch.optim.Adam(nn.Linear(1, 1).parameters()), 1).state_dict()
    ]
    tree["optimizer_states"][0]["param_groups"][0]["initial_lr"] = 0.1
    torch.save(tree, path)
    with pytest.warns(UserWarning, match="Epoch 0 goes on behind the first 3 batches of a new pass"):
        Trainer(**QUIET, max_epochs=1).fit(Net(), [torch.ones(1, 3)] * 4, ckpt_path=path)


@needs_torch
def test_an_old_torch_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torch 2.10 reading a pickle was not safe, so the command to upgrade is given."""
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(CheckpointError, match=r"pip install 'torch>=2.10'"):
        import_lightning(tmp_path / "x.ckpt")
