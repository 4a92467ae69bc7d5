"""Test on real ranks that batches fetched early, and garbage collected at chosen steps, change nothing."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lt_core import LightningModule, Trainer
from lt_core.checkpoint import load_checkpoint
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.reference import ReferenceLauncher

sys.path.append(str(Path(__file__).parents[1] / "packages/lt-core/tests"))
from late_device import LateAccelerator


class Net(LightningModule):
    """Module that keeps the first sample of each batch, and saves in the middle."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(1, 1)
        self.folder = folder
        self.seen: list[float] = []
        self.collected: list[bool] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(float(batch[0][0]))
        self.collected.append(gc.isenabled())
        if batch_idx == 1:
            self.trainer.request_checkpoint(self.folder / f"e{self.trainer.current_epoch}.ckpt")
        loss: Tensor = self.layer(batch[0]).square().mean() * 1e-3
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(folder: Path, accelerator: Any, workers: int, **flags: Any) -> Net:
    """Train two epochs of 11 samples, the last batch short on both ranks."""
    torch.manual_seed(3)
    module = Net(folder)
    data = TensorDataset(torch.arange(11.0).view(-1, 1))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        **{"strategy": "ddp", "devices": 2, "max_epochs": 2, "enable_model_summary": False}
        | {"launcher": ReferenceLauncher()}
        | quiet
        | {"accelerator": accelerator, "default_root_dir": folder}
        | flags
    )
    trainer.fit(module, DataLoader(data, batch_size=2, shuffle=True, num_workers=workers))
    return module


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_ranks_see_and_save_the_same(workers: int, tmp_path: Path) -> None:
    """Each rank's batches, the weights and the saved place are those of ranks without a side stream."""

    def both(rank: int) -> list[Any]:
        made = []
        for name, accelerator in (("plain", "cpu"), ("late", LateAccelerator())):
            module = train(tmp_path / name, accelerator, workers)
            made.append((module.seen, module.layer.weight.item()))
        return made

    ranks = run_ranks(both, timeout=120)
    assert all(plain == late for plain, late in ranks)
    assert sorted(ranks[0][0][0] + ranks[1][0][0]) != sorted(2 * ranks[0][0][0])
    for name in ("e0.ckpt", "e1.ckpt"):
        plain, late = (load_checkpoint(tmp_path / kind / name) for kind in ("plain", "late"))
        for part in ("progress", "data", "state_dict"):
            assert repr(plain[part]) == repr(late[part]), part


@pytest.mark.slow
def test_a_resident_set_is_shared_among_ranks(tmp_path: Path) -> None:
    """With data_on_device, each rank takes its share from its own copy, in the loader's order."""

    def both(rank: int) -> list[Any]:
        return [train(tmp_path / str(kept), "cpu", 0, data_on_device=kept).seen for kept in (False, True)]

    for plain, kept in run_ranks(both, timeout=120):
        assert plain == kept


@pytest.mark.slow
def test_ranks_collect_at_the_same_steps(tmp_path: Path) -> None:
    """The collector is switched off on every rank after the first step, and on again at the end."""

    def once(rank: int) -> Any:
        module = train(tmp_path, "cpu", 0, gc_every_n_steps=2)
        return module.collected, gc.isenabled()

    for seen, enabled in run_ranks(once, timeout=120):
        assert (seen, enabled) == ([True] + [False] * (len(seen) - 1), True)
