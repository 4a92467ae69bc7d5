"""What the process that launched ranks has after a call, beyond the weights: the module's buffers, and why it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import QUIET, Net
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lt_core import Trainer
from lt_interface import MisconfigurationException


def loader() -> DataLoader[Any]:
    """Return a loader of six batches of equal samples, so that each rank sees what one process sees."""
    return DataLoader(TensorDataset(torch.full((24, 4), 0.5), torch.ones(24, 1)), batch_size=4)


class Table(nn.Module):
    """Layer that makes its buffer when it is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", None, persistent=False)


class Buffered(Net):
    """Network whose steps assign, make, fill, extend and drop buffers."""

    mean: Tensor
    seen: Tensor
    queue: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = Table()
        self.register_buffer("mean", torch.zeros(4), persistent=False)
        self.register_buffer("wide", torch.zeros(2, dtype=torch.float16), persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("queue", torch.zeros(0))
        self.register_buffer("later", None)
        self.register_buffer("dropped", torch.ones(2), persistent=False)
        self.same = self.mean

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        self.mean += batch[0].mean(0)
        self.wide = torch.ones(2)
        self.seen = self.seen + 1
        self.queue = torch.cat([self.queue, torch.ones(1)])
        self.later, self.inner.table, self.dropped = torch.full((2,), 3.0), torch.arange(3.0), None
        if "kept" not in self._buffers:
            self.register_buffer("kept", torch.full((3,), 8.0))
            self.inner.register_buffer("made", torch.full((3,), 7.0), persistent=False)
        return super().training_step(batch, batch_idx)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.mean = self.mean + 1
        self.seen += 10


@pytest.mark.parametrize("strategy", ["ddp_fork", pytest.param("ddp_spawn", marks=pytest.mark.slow)])
def test_buffers_come_back(tmp_path: Path, strategy: str) -> None:
    """After ranks have trained or tested, the module here has rank 0's buffers, as after one process."""
    alone, launched = Buffered(), Buffered()
    flags = {**QUIET, "max_epochs": 1, "default_root_dir": tmp_path, "use_distributed_sampler": False}
    here, there = Trainer(**flags), Trainer(**flags, devices=2, strategy=strategy)
    for call in (lambda trainer, net: trainer.fit(net, loader()), lambda trainer, net: trainer.test(net, loader())):
        call(here, alone)
        call(there, launched)
        found, expected = dict(launched.named_buffers()), dict(alone.named_buffers())
        torch.testing.assert_close(found, expected)
        assert list(launched.state_dict()) == list(alone.state_dict())
        assert launched.dropped is None
    assert int(launched.seen) == 66


def test_a_buffer_stays_the_same_tensor(tmp_path: Path) -> None:
    """A buffer that ranks filled in place is filled in place here, for whoever holds it."""
    net = Buffered()
    Trainer(**QUIET, max_epochs=1, default_root_dir=tmp_path, devices=2, strategy="ddp_fork").fit(net, loader())
    assert net.same is net.mean
    assert float(net.same[0]) == 1.5


class Without(Net):
    """Network that some ranks, or all, train without an optimizer; a batch may have no loss."""

    def __init__(self, skips: str, trains: int | None = None) -> None:
        super().__init__()
        self.skips, self.trains = skips, trains

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss, on_epoch=True, sync_dist=True)
        skipped = {"all": True, "some": batch_idx % 2, "rank": self.global_rank, "none": False}[self.skips]
        return None if skipped else loss

    def configure_optimizers(self) -> Any:
        return super().configure_optimizers() if self.global_rank == self.trains else None


@pytest.mark.parametrize("skips", ["all", "rank", pytest.param("some", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:Without:UserWarning", "ignore:.*no optimizer:UserWarning")
def test_ranks_without_an_optimizer_skip_what_they_like(tmp_path: Path, skips: str) -> None:
    """Without an optimizer a batch needs no loss, on all ranks or on one, and counts as a step as in one process."""
    found = []
    for flags in ({}, {"devices": 2, "strategy": "ddp_fork"}):
        trainer = Trainer(**QUIET, **flags, max_epochs=1, default_root_dir=tmp_path)
        trainer.fit(Without(skips), DataLoader(loader().dataset, batch_size=8 // max(trainer.num_devices, 1)))
        found.append((trainer.global_step, float(trainer.callback_metrics["loss_epoch"])))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("trains", [0, 1])
@pytest.mark.filterwarnings("ignore:.*no optimizer:UserWarning")
def test_an_optimizer_on_one_rank_alone_is_named(tmp_path: Path, trains: int) -> None:
    """Where configure_optimizers returns None on one rank alone, all ranks end with what each of them has."""
    trainer = Trainer(**QUIET, max_epochs=1, default_root_dir=tmp_path, devices=2, strategy="ddp_fork")
    has = "SGD on rank 0, none on rank 1" if trains == 0 else "none on rank 0, SGD on rank 1"
    with pytest.raises(MisconfigurationException, match=rf"Without\.configure_optimizers: .* optimizer 0: {has}"):
        trainer.fit(Without("none", trains), loader())
