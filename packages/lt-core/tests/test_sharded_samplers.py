"""Recognise samplers that give each rank its share: what they give is never shared a second time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler, SequentialSampler

from lt_core.data import Feed
from lt_interface import World

N = 24


class OwnNames(DistributedSampler[int]):
    """Distributed sampler that keeps its rank under names of its own."""

    def __init__(self, me: int, all_of_us: int) -> None:
        self.me, self.all_of_us, self.turn = me, all_of_us, 0

    def set_epoch(self, epoch: int) -> None:
        self.turn = epoch

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(N, generator=torch.Generator().manual_seed(self.turn)).tolist()
        return iter(order[self.me :: self.all_of_us])

    def __len__(self) -> int:
        return N // self.all_of_us


class Pairs:
    """Batch sampler of no known kind around another sampler."""

    def __init__(self, around: Any) -> None:
        self.around = around

    def __iter__(self) -> Iterator[list[int]]:
        indices = list(self.around)
        return iter([indices[i : i + 2] for i in range(0, len(indices), 2)])

    def __len__(self) -> int:
        return len(self.around) // 2


class Strided(Sampler[int]):
    """Sampler of a kind of its own that knows its rank as distributed samplers do."""

    def __init__(self, rank: int, num_replicas: int) -> None:
        self.rank, self.num_replicas = rank, num_replicas

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, N, self.num_replicas))

    def __len__(self) -> int:
        return N // self.num_replicas


class Passing(Sampler[int]):
    """Sampler that passes on what one of several others gives."""

    def __init__(self, *others: Any) -> None:
        self.others = list(others)

    def __iter__(self) -> Iterator[int]:
        return iter(self.others[-1])

    def __len__(self) -> int:
        return len(self.others[-1])


def distributed(rank: int, **options: Any) -> DistributedSampler[int]:
    return DistributedSampler(range(N), num_replicas=2, rank=rank, **options)  # type: ignore[arg-type]


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(list(range(N)), **options)  # type: ignore[arg-type]


SHARDED: dict[str, Callable[[int], DataLoader[Any]]] = {
    "sampler": lambda r: loader(batch_size=2, sampler=distributed(r)),
    "sampler without batches": lambda r: loader(batch_size=None, sampler=distributed(r)),
    "sampler with names of its own": lambda r: loader(batch_size=2, sampler=OwnNames(r, 2)),
    "sampler of another kind": lambda r: loader(batch_size=2, sampler=Strided(r, 2)),
    "drop_last": lambda r: loader(batch_size=2, sampler=distributed(r, drop_last=True), drop_last=True),
    "batch sampler": lambda r: loader(batch_sampler=BatchSampler(distributed(r), 2, False)),
    "batch sampler of another kind": lambda r: loader(batch_sampler=Pairs(distributed(r))),
    "wrapped twice": lambda r: loader(batch_sampler=Pairs(Passing(SequentialSampler(range(N)), OwnNames(r, 2)))),
}


@pytest.mark.parametrize("stage", ["train", "test"])
@pytest.mark.parametrize("name", SHARDED)
def test_what_is_sharded_is_not_shared_again(name: str, stage: str) -> None:
    """Two ranks together see every sample once, whatever the distributed sampler is wrapped in."""
    seen: list[int] = []
    for rank in range(2):
        world = World(rank=rank, size=2, data_rank=rank, data_size=2)
        feed = Feed(SHARDED[name](rank), stage=stage, world=world)
        for item in feed.epoch(0):
            seen.extend(torch.as_tensor(item if stage == "train" else item[0]).reshape(-1).tolist())
    assert sorted(seen) == list(range(N))


@pytest.mark.parametrize("name", ["batch sampler of another kind", "wrapped twice", "sampler with names of its own"])
def test_a_sharding_sampler_learns_the_epoch(name: str) -> None:
    """set_epoch reaches the distributed sampler through its wrappers, so that each epoch has a new order."""
    feed = Feed(SHARDED[name](0), stage="train", world=World(rank=0, size=2, data_size=2))
    orders = [[batch.tolist() for batch in feed.epoch(epoch)] for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("wrap", [lambda s: {"batch_size": 2, "sampler": s}, lambda s: {"batch_sampler": Pairs(s)}])
def test_a_sampler_for_one_process_is_shared(wrap: Callable[[Any], dict[str, Any]]) -> None:
    """A distributed sampler that gives all samples, since it was made for one process, is shared like any other."""
    seen: list[int] = []
    for rank in range(2):
        sampler: Any = DistributedSampler(range(N), num_replicas=1, rank=0)  # type: ignore[arg-type]
        feed = Feed(loader(**wrap(sampler)), stage="train", world=World(rank=rank, size=2, data_rank=rank, data_size=2))
        seen.extend(i for batch in feed.epoch(0) for i in batch.tolist())
    assert sorted(seen) == list(range(N))


def test_overfitting_shares_the_fixed_order() -> None:
    """Where overfit_batches replaces a distributed sampler by a sequential one, the ranks share that one."""
    seen = []
    for rank in range(2):
        world = World(rank=rank, size=2, data_rank=rank, data_size=2)
        with pytest.warns(UserWarning, match="overfit_batches"):
            feed = Feed(SHARDED["sampler"](rank), stage="train", world=world, sequential=True, limit=1)
        seen.extend(i for batch in feed.epoch(0) for i in batch.tolist())
    assert seen == [0, 1, 2, 3]
