"""Exchange values between real ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from lt_accel.strategies.ddp import DDPStrategy
from lt_interface import MisconfigurationException, Plan
from lt_interface.testing import CollectivesConformance
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.reference import ReferenceAccelerator


def exchange() -> Any:
    """Return the collectives of a strategy that was set up in this rank."""
    from lt_accel.group import world_of

    devices = tuple(range(world_of(None).size))
    strategy = DDPStrategy()
    strategy.setup(None, ReferenceAccelerator(), devices, Plan(devices=devices))
    return strategy.collectives


class TestGlooCollectives(CollectivesConformance):
    sizes = (1, 2, 3)

    def make(self) -> Any:
        return exchange()


def test_a_group_of_the_users_own_is_reduced_over() -> None:
    """A process group in place of a name has its own ranks and size."""

    def job(rank: int) -> tuple[float, int]:
        collectives = exchange()
        groups = [dist.new_group([0, 1]), dist.new_group([2])]
        mine = groups[rank // 2]
        gathered = collectives.all_gather(torch.tensor([rank]), group=mine)
        return float(collectives.reduce(torch.tensor(float(rank)), "mean", mine)), len(gathered)

    assert run_ranks(job, 3) == [(0.5, 2), (0.5, 2), (2.0, 1)]


def test_unknown_groups_and_operations_are_refused() -> None:
    """A group's name or an operation that does not exist is an error that lists those that do."""

    def job(rank: int) -> None:
        collectives = exchange()
        with pytest.raises(MisconfigurationException, match=r"one of 'data', 'all'\. Got 'tensor'"):
            collectives.reduce(torch.ones(1), group="tensor")
        with pytest.raises(MisconfigurationException, match="'product'"):
            collectives.reduce(torch.ones(1), "product")
        with pytest.raises(MisconfigurationException, match=r"'max' of torch\.complex64"):
            collectives.reduce(torch.ones(1, dtype=torch.complex64), "max")
        assert collectives.reduce(torch.ones(1, dtype=torch.complex64) * 1j * (rank + 1)).tolist() == [1.5j]

    run_ranks(job)
