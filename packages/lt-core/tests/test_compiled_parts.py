"""Check that modules whose parts are compiled share their checkpoints with those whose parts are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import SILENT
from torch import nn

from lt_core import LightningModule, Trainer
from lt_core.callbacks import ModelCheckpoint
from lt_core.checkpoint import load_checkpoint

BATCHES = [torch.full((2, 4), float(i)) for i in range(3)]


class Net(LightningModule):
    """Module whose first part may be compiled."""

    def __init__(self, compiled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first: Any = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.second = nn.Linear(4, 1)
        if compiled:
            self.first = torch.compile(self.first, backend="eager")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.second(self.first(batch)).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def fit(module: Net, folder: Path, epochs: int, ckpt_path: Any = None) -> str:
    """Train, and return the path of the checkpoint."""
    saving = ModelCheckpoint(dirpath=folder)
    Trainer(**SILENT, logger=False, max_epochs=epochs, callbacks=[saving]).fit(module, BATCHES, ckpt_path=ckpt_path)
    return saving.best_model_path


def tensors(module: Net) -> list[torch.Tensor]:
    """Return what a module holds, in its order."""
    return list(module.state_dict().values())


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("resumed", [True, False])
def test_compiled_parts_are_saved_by_the_users_names(tmp_path: Path, saved: bool, resumed: bool) -> None:
    """A checkpoint holds plain names, and is resumed, found and loaded whichever side has a compiled part."""
    path = fit(Net(saved), tmp_path, 1)
    tree = load_checkpoint(path)
    assert list(tree["state_dict"]) == list(Net().state_dict())
    assert "first.0.weight" in tree["optimizer_states"][0]["state"]
    found, expected = Net(resumed), Net()
    fit(found, tmp_path, 2, ckpt_path="last")
    fit(expected, tmp_path / "straight", 2)
    torch.testing.assert_close(tensors(found), tensors(expected), rtol=0, atol=0)
    loaded = Net.load_from_checkpoint(path, compiled=resumed)
    torch.testing.assert_close(tensors(loaded), list(tree["state_dict"].values()), rtol=0, atol=0)


def test_files_with_the_compilers_names_still_load() -> None:
    """Optimizer states and weights that were saved by the compiler's names are those of the plain ones."""
    from lt_core.checkpoint.weights import load_weights
    from lt_core.optim.states import load_named_states, named_states

    source, target = Net(True), Net()
    optimizer, other = source.configure_optimizers(), target.configure_optimizers()
    source.training_step(BATCHES[1], 0).backward()
    optimizer.step()
    (state,) = named_states(source, [optimizer])
    old = {f"first._orig_mod.{k[6:]}" if k.startswith("first.") else k: v for k, v in state["state"].items()}
    groups = [{**group, "params": list(old)} for group in state["param_groups"]]
    load_named_states(target, [other], [{**state, "state": old, "param_groups": groups}])
    load_weights(target, source.state_dict())
    torch.testing.assert_close(tensors(target), tensors(source), rtol=0, atol=0)
    assert len(other.state) == len(optimizer.state) == 6
