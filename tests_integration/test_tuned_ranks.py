"""Find a learning rate and a batch size with several ranks: all find the same, and nothing else is changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import LightningModule, Trainer, seed_everything
from lt_core.callbacks import BatchSizeFinder, LearningRateFinder
from lt_core.tuner import Tuner
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.training import Job

SECONDS = 120.0
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 1,
    "num_sanity_val_steps": 0,
}


class Net(LightningModule):
    """Module whose memory is exhausted on some ranks by a batch of more samples than ``most``."""

    def __init__(self, most: int = 10**6, ranks: tuple[int, ...] = (1,), where: str = "forward") -> None:
        super().__init__()
        self.lr, self.batch_size, self.most, self.ranks, self.where = 0.01, 2, most, ranks, where
        self.layer = nn.Linear(2, 1)

    def fill(self, where: str, samples: int) -> None:
        if where == self.where and samples > self.most and self.global_rank in self.ranks:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        self.samples = len(x)
        self.fill("forward", len(x))
        loss = (self.layer(x) - x.sum(1, keepdim=True)).pow(2).mean()
        self.log("loss", loss, sync_dist=True)
        return loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.fill("forward", len(batch[0]))

    def on_after_backward(self) -> None:
        self.fill("backward", self.samples)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.fill("step", self.samples)

    def train_dataloader(self) -> Any:
        x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(x), self.batch_size, shuffle=True)

    def test_dataloader(self) -> Any:
        x = torch.randn(63, 2, generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(x), self.batch_size)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def on_two(job: Any) -> list[Any]:
    Job().network().configure_optimizers()  # what ranks need is imported once, before they are forked
    return run_ranks(job, timeout=SECONDS)


def two(folder: Path, *callbacks: Any) -> Trainer:
    return Trainer(devices=2, strategy=DDPStrategy(), callbacks=[*callbacks], default_root_dir=folder, **QUIET)


def test_both_ranks_find_the_same_and_train_as_without(tmp_path: Path) -> None:
    """Rates and sizes found are the same on both ranks, and the fit that follows has the bits of a fit without."""

    def job(rank: int) -> Any:
        def fit(searches: bool) -> Any:
            seed_everything(4)
            net, found = Net(most=4), []
            if searches:
                tuner = Tuner(two(tmp_path))
                curve = tuner.lr_find(net, num_training=15, update_attr=False)
                assert curve is not None
                found = [curve.results, tuner.scale_batch_size(net), tuner.scale_batch_size(net, method="test")]
                net.batch_size = 2
            finder = LearningRateFinder(num_training_steps=12, update_attr=False)
            two(tmp_path, *([finder] if searches else ())).fit(net)
            return [t.tolist() for t in net.state_dict().values()], torch.get_rng_state().tolist(), found

        with_search, without = fit(True), fit(False)
        assert with_search[:2] == without[:2]
        return with_search[2], os.listdir(tmp_path)

    first, second = on_two(job)
    assert first == second
    (curve, size, test_size), files = first
    assert len(curve["lr"]) == 15
    assert (size, test_size, files) == (4, 4, [])


@pytest.mark.parametrize("where", ["forward", "backward", "step"])
def test_memory_that_one_rank_lacks_is_lacking_everywhere(tmp_path: Path, where: str) -> None:
    """A size that does not fit on one rank, wherever in the step, is none for both, and the fit goes on with it."""

    def job(rank: int) -> Any:
        seed_everything(4)
        net, finder = Net(most=5, where=where), BatchSizeFinder("binsearch", margin=0)
        runner = two(tmp_path, finder)
        runner.fit(net)
        return net.batch_size, finder.optimal_batch_size, runner.global_step, net.layer.weight.tolist()

    first, second = on_two(job)
    assert first == second
    assert first[:3] == (5, 5, 7)


def test_ranks_that_a_search_launches(tmp_path: Path) -> None:
    """A search in processes that it launches brings back what they found, and leaves the module here as it was."""
    net = Net(most=4)
    before = [t.tolist() for t in net.state_dict().values()], torch.get_rng_state().tolist()
    runner = Trainer(devices=2, strategy="ddp_fork", default_root_dir=tmp_path, **QUIET)
    found = Tuner(runner).lr_find(net, num_training=15)
    assert found is not None
    assert net.lr == found.suggestion()
    assert Tuner(runner).scale_batch_size(net) == net.batch_size == 4
    assert ([t.tolist() for t in net.state_dict().values()], torch.get_rng_state().tolist()) == before
    assert os.listdir(tmp_path) == []
