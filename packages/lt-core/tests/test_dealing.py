"""Deal batches of which only the order is known, and end epochs together; threads stand for ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from lt_core.data import CombinedLoader, Feed
from lt_core.data.dealing import Dealer
from lt_core.data.nested import digest
from lt_interface import PlainCollectives, World
from lt_interface.errors import ConfigError


def world(rank: int, size: int) -> World:
    return World(rank=rank, size=size, data_rank=rank, data_size=size)


class Stream(IterableDataset[int]):
    """The first numbers."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Any:
        return iter(range(self.n))


def dealt(
    user: Any, rank: int, size: int, train: bool, single: bool = True
) -> tuple[list[Any], list[tuple[float, int]]]:
    """Return one rank's share of what all ranks give alike, and the weights of its batches."""
    peers: dict[str, Any] = {"world": world(rank, size), "ranks": size, "collectives": PlainCollectives()}
    dealer = Dealer(user, "loader", train=train, single=single, **peers)
    batches = list(dealer.deal(iter(user), True))
    return batches, list(dealer.weights)


@given(n=st.integers(0, 20), size=st.integers(2, 5), train=st.booleans())
def test_every_batch_is_dealt_once(n: int, size: int, train: bool) -> None:
    """The ranks' batches of weight above 0, put together, are the stream; all ranks have equally many batches."""
    shares = [dealt(list(range(n)), rank, size, train) for rank in range(size)]
    own = [[b for b, (weight, _) in zip(*share, strict=True) if weight] for share in shares]
    assert sorted(batch for share in own for batch in share) == list(range(n))
    assert all(share == list(range(rank, n, size)) for rank, share in enumerate(own))
    assert {len(share[0]) for share in shares} == {-(-n // size)}


@given(n=st.integers(0, 20), size=st.integers(2, 5))
def test_a_rest_is_left_out_where_it_is_wished_or_streams_run_side_by_side(n: int, size: int) -> None:
    """With drop_last, and beside other loaders, all ranks have one batch of each whole global batch in training."""
    for rank in range(size):
        whole = list(range(rank, n // size * size, size))
        assert dealt(list(range(n)), rank, size, True, single=False)[0] == whole
        dropping = DataLoader(Stream(n), 1, drop_last=True)
        assert [int(batch) for batch in dealt(dropping, rank, size, True)[0]] == whole


@given(n=st.integers(1, 30), batch=st.integers(1, 4), size=st.integers(2, 3))
def test_weights_of_dealt_batches_make_the_mean_over_samples(n: int, batch: int, size: int) -> None:
    """The mean over ranks of weighted means is the mean over the samples of each global batch."""
    loader = DataLoader(Stream(n), batch)
    shares = [dealt(loader, rank, size, True) for rank in range(size)]
    order = list(range(n))
    for step in range(-(-n // (batch * size))):
        samples = order[step * batch * size : (step + 1) * batch * size]
        means = [share[0][step].double().mean().item() * share[1][step][0] for share in shares]
        assert sum(means) / size == pytest.approx(sum(samples) / len(samples))
        assert {share[1][step][1] for share in shares} == {len(samples)}


class Table:
    """Place where the threads meet."""

    def __init__(self, size: int) -> None:
        self.size, self.gate, self.given = size, threading.Barrier(size, timeout=10), dict[int, Any]()

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.gate.wait()
        self.given[rank] = value
        self.gate.wait()
        found = [self.given[r] for r in range(self.size)]
        self.gate.wait()
        return found


class Meeting(PlainCollectives):
    """Exchange of one thread, which is also the agreement on the last batch."""

    def __init__(self, table: Table, rank: int) -> None:
        self.table, self.rank, self.ended = table, rank, False

    def broadcast_object(self, obj: Any, src: int = 0) -> Any:
        return self.table.exchange(self.rank, ("broadcast", obj))[src][1]

    def gather_object(self, obj: Any) -> list[Any]:
        return [found for _, found in self.table.exchange(self.rank, ("gather", obj))]

    def any(self, flag: bool) -> bool:
        found = self.table.exchange(self.rank, ("any", flag))
        assert {kind for kind, _ in found} == {"any"}
        return any(one for _, one in found)

    def send(self, last: bool) -> None:
        found = self.table.exchange(self.rank, ("send", last))
        assert {kind for kind, _ in found} == {"send"}
        self.ended = any(one for _, one in found)

    def heard(self) -> bool:
        return self.ended


def on_threads(size: int, job: Callable[[int, Any], Any]) -> list[Any]:
    """Run a job on threads that stand for ranks; raise the first error."""
    table, found, errors = Table(size), [None] * size, list[BaseException]()

    def work(rank: int) -> None:
        try:
            found[rank] = job(rank, Meeting(table, rank))
        except BaseException as error:
            errors.append(error)
            table.gate.abort()

    threads = [threading.Thread(target=work, args=(r,), daemon=True) for r in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return found


KINDS: dict[str, Callable[[list[Any]], Any]] = {
    "list": lambda batches: batches,
    "function": lambda batches: lambda: iter(batches),
}


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    kind=st.sampled_from(["list", "function"]),
    limit=st.sampled_from([1.0, 1, 3, 9]),
)
def test_uneven_ranks_take_equally_many_steps(lengths: list[int], kind: str, limit: int | float) -> None:
    """Each epoch has as many steps as the shortest rank's data, on all ranks; only the last is marked as the last."""

    def job(rank: int, meeting: Any) -> Any:
        source = KINDS[kind]([100 * rank + i for i in range(lengths[rank])])
        feed = Feed(
            source, stage="train", world=world(rank, len(lengths)), limit=limit, collectives=meeting, ends=meeting
        )
        return [[(batch, feed.last) for batch in feed.epoch(epoch)] for epoch in range(2)]

    steps = min([*lengths, limit] if isinstance(limit, int) else lengths)
    for rank, epochs in enumerate(on_threads(len(lengths), job)):
        assert epochs == [[(100 * rank + i, i == steps - 1) for i in range(steps)]] * 2


def test_sizes_are_those_that_the_ranks_found() -> None:
    """num_batches is a dealt list's share once the first batches were compared, and the shortest rank's elsewhere."""

    def job(rank: int, meeting: Any) -> Any:
        found = []
        for data in (list(range(7)), [rank] * (4 + rank)):
            feed = Feed(data, stage="train", world=world(rank, 2), collectives=meeting, ends=meeting)
            list(feed.epoch(0))
            found.append(feed.num_batches)
        return found

    assert on_threads(2, job) == [[4, 4]] * 2


def test_a_list_with_fewer_batches_than_ranks_is_refused_beside_another() -> None:
    """A dealt list that runs beside another one must hold a batch for each rank."""

    def job(rank: int, meeting: Any) -> None:
        with pytest.raises(ConfigError, match="a loader of length 1 for 2 ranks"):
            Feed({"a": [5], "b": [6, 7]}, stage="train", world=world(rank, 2), collectives=meeting).epoch(0)

    on_threads(2, job)


class Point(NamedTuple):
    """Batch with names."""

    x: Any
    label: Any


class Graph:
    """Batch of a kind of its own."""

    def __init__(self, x: Any) -> None:
        self.x, self.me = x, self


EQUAL: list[tuple[Callable[[], Any], Any]] = [
    (lambda: torch.arange(3), torch.arange(1, 4)),
    (lambda: torch.arange(3), torch.arange(3.0)),
    (lambda: torch.ones(2, 3), torch.ones(3, 2)),
    (lambda: torch.tensor(2, dtype=torch.bfloat16), torch.tensor(3, dtype=torch.bfloat16)),
    (lambda: torch.eye(2).to_sparse(), torch.ones(2, 2).to_sparse()),
    (lambda: torch.ones(2, dtype=torch.complex64).conj(), torch.zeros(2, dtype=torch.complex64)),
    (lambda: Point(torch.ones(2), ["a", "b"]), Point(torch.ones(2), ["a", "c"])),
    (lambda: {"x": [1, 2.5, None], "y": b"z"}, {"x": [1, 2.5, None], "y": b"w"}),
    (lambda: np.arange(4), np.arange(1, 5)),
    (lambda: Graph(torch.ones(2)), Graph(torch.zeros(2))),
    (lambda: {"one", "two", "three"}, {"one", "two"}),
    (threading.Lock, [1]),
]


@pytest.mark.parametrize(("make", "other"), EQUAL)
def test_digests_are_equal_for_equal_batches_alone(make: Callable[[], Any], other: Any) -> None:
    """Contents count, down to objects of the user's own; identities do not."""
    assert digest(make()) == digest(make())
    assert digest(make()) != digest(other)


class Unsized:
    """Batch sampler without a length."""

    def __init__(self, n: int, size: int) -> None:
        self.inner = BatchSampler(SequentialSampler(range(n)), size, False)

    def __iter__(self) -> Any:
        return iter(self.inner)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 9, 12])
def test_an_unsized_batch_sampler_is_shared_by_its_indices(n: int, size: int) -> None:
    """A sized dataset with a batch sampler of unknown length is shared sample by sample; all ranks end together."""

    def job(rank: int, meeting: Any) -> Any:
        data: Any = DataLoader(list(range(n)), batch_sampler=Unsized(n, 2))  # type: ignore[arg-type]
        feed = Feed(data, stage="train", world=world(rank, size), collectives=meeting, ends=meeting)
        return [(batch.tolist() if feed.weight else [], feed.last) for batch in feed.epoch(0)]

    found = on_threads(size, job)
    assert sorted(i for steps in found for batch, _ in steps for i in batch) == list(range(n))
    assert all([last for _, last in steps] == [False] * (len(found[0]) - 1) + [True] for steps in found)


@pytest.mark.parametrize(("mode", "steps"), [("min_size", 3), ("max_size_cycle", 5), ("max_size", 5)])
def test_a_sized_and_an_unsized_loader_make_one(mode: Any, steps: int) -> None:
    """A combination without a length is walked in each mode, by one process too."""
    loaders = [DataLoader(list(range(6)), 2), lambda: iter(range(5))]  # type: ignore[arg-type]
    feed = Feed(CombinedLoader(loaders, mode), stage="train")
    lasts = [feed.last for _ in feed.epoch(0)]
    assert lasts == [False] * (steps - 1) + [True]
    evaluated = Feed(CombinedLoader(loaders, "sequential"), stage="test")
    assert len(list(evaluated.epoch(0))) == 8
    problem = "fraction needs a loader of known length"
    if mode != "min_size":
        with pytest.raises(ConfigError, match=f"val_dataloaders.*{problem}"):
            Feed(CombinedLoader(loaders, mode), stage="train", limit=0.5, where="val_dataloaders")
    with pytest.raises(ConfigError, match=f"/dataloader_idx_1.*{problem}"):
        Feed(loaders, stage="test", limit=0.5)


@pytest.mark.filterwarnings("ignore:Resuming inside an epoch")
@pytest.mark.parametrize(("ranks", "batch"), [(1, 2), (2, 2), (3, 2), (2, 4), (1, 4)])
def test_a_dealt_place_serves_other_ranks_and_batch_sizes(ranks: int, batch: int) -> None:
    """What two ranks left over of a stream is what any number of ranks takes, in batches of another size too."""
    alike: Any = PlainCollectives()  # ranks that all give the same

    def feed(rank: int, size: int, batch: int) -> Feed:
        return Feed(DataLoader(Stream(60), batch), stage="train", world=world(rank, size), collectives=alike)

    before = feed(0, 2, 2)
    batches = before.epoch(0)
    for _ in range(3):
        next(batches)
    state = before.state_dict()
    order: list[tuple[int, list[int]]] = []
    for rank in range(ranks):
        after = feed(rank, ranks, batch)
        after.load_state_dict(state)
        order += [(step * ranks + rank, taken.tolist()) for step, taken in enumerate(after.resume(0))]
        assert after.samples == 60 or ranks == 1
    assert [i for _, taken in sorted(order) for i in taken] == list(range(12, 60))


def test_samples_are_those_of_batches_that_were_handed_out() -> None:
    """What was looked ahead at is not counted before its turn comes."""
    loaders = [DataLoader(list(range(6)), 2), lambda: iter(range(3))]  # type: ignore[arg-type]
    feed = Feed(loaders, stage="train")
    counted = [(feed.last, feed.samples) for _ in feed.epoch(0)]
    assert counted == [(False, 2), (False, 4), (True, 6)]
