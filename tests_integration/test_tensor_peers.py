"""Ranks that share their samples, as tensor parallelism has them: two pairs, each with a share of the data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lt_accel.collectives import ProcessGroupCollectives
from lt_accel.strategies.ddp import DDPStrategy
from lt_core import LightningModule, Trainer
from lt_interface import World
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.training import Job

SIZE = 4


class Pairs(DDPStrategy):
    """Strategy under which ranks 0 and 1, and ranks 2 and 3, see the same samples."""

    def setup(self, *args: Any) -> World:
        world = super().setup(*args)
        across = [dist.new_group([0, 2]), dist.new_group([1, 3])]
        assert self._peers is not None
        self.collectives = ProcessGroupCollectives(self._peers, {"data": across[world.rank % 2]})
        self.world = replace(world, data_rank=world.rank // 2, data_size=2)
        return self.world


class Net(LightningModule):
    """Module that logs its loss; what else, a test says."""

    def __init__(self, logs: tuple[int, ...] = ()) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.logs = torch.nn.Linear(3, 1), logs
        self.kwargs: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        self.kwargs = self.trainer.distributed_sampler_kwargs

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = (self.layer(batch[0]) ** 2).mean()
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        if self.global_rank in self.logs:
            self.log("own", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(net: Net) -> Trainer:
    """Train a module on pairs for one epoch, in a rank."""
    torch.set_num_threads(1)
    data = TensorDataset(torch.randn(32, 3, generator=torch.Generator().manual_seed(5)))
    trainer: Trainer = Job().trainer(SIZE, strategy=Pairs(), use_distributed_sampler=True, max_epochs=1)
    trainer.fit(net, DataLoader(data, 4))
    return trainer


def test_a_sampler_of_the_users_own_is_for_the_ranks_with_other_samples() -> None:
    """The arguments of a DistributedSampler count the shares of the data, not the processes."""

    def job(rank: int) -> dict[str, Any]:
        net = Net()
        fit(net)
        return net.kwargs

    assert run_ranks(job, SIZE) == [{"num_replicas": 2, "rank": share} for share in (0, 0, 1, 1)]


@pytest.mark.parametrize("logs", [(0,), (0, 1)], ids=["one", "a pair"])
def test_names_that_some_ranks_lack_are_those_of_the_others(logs: tuple[int, ...]) -> None:
    """A value that not every rank logs with sync_dist is the mean of those that do, on all that they exchange with."""

    def job(rank: int) -> Any:
        metrics = fit(Net(logs)).callback_metrics
        return float(metrics["own"]) if "own" in metrics else None

    found = run_ranks(job, SIZE, timeout=60.0)
    assert found[0] == found[2] != None  # noqa: E711
    assert found[1] == found[3] == (found[0] if 1 in logs else None)
