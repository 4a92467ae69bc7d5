"""Checkpoints of PyTorch Lightning can be imported, without running what they hold."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest
import torch
from torch import nn

from lt_core.checkpoint import import_lightning, load_checkpoint, save_checkpoint
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
    assert found["progress"] == {"epoch": 2, "batch": 0, "step": 12, "samples": 0, "epoch_closed": True}
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
    progress = import_lightning(path)["progress"]
    assert progress == {"epoch": 1, "batch": 3, "step": 9, "samples": 0, "epoch_closed": False}


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
def test_optimizer_states_without_names_are_left_out_with_a_warning(tmp_path: pathlib.Path, module: Any) -> None:
    """Positions are never guessed: without a module that fits the optimizer states stay behind."""
    path = lightning_file(tmp_path / "l.ckpt", nn.Linear(3, 1))
    with pytest.warns(UserWarning, match="module="):
        assert "optimizer_states" not in import_lightning(path, module)


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


def test_an_old_torch_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torch 2.10 reading a pickle was not safe, so the command to upgrade is given."""
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(CheckpointError, match=r"pip install 'torch>=2.10'"):
        import_lightning(tmp_path / "x.ckpt")
