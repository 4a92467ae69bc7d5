"""Test what a feed delivers: the batches, random draws, sizes, limits and errors of a plain loop."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from lt_core.data import CombinedLoader, Feed
from lt_core.notices import PossibleUserWarning
from lt_core.state import rng
from lt_interface import PlainCollectives, World
from lt_interface.errors import ConfigError


class Noisy(Dataset[Any]):
    """Indices with random numbers from every global generator and from one of its own."""

    def __init__(self, n: int = 23) -> None:
        self.n, self.own, self.epoch = n, np.random.default_rng(0), -1

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[int, float, float, float, float]:
        return index, torch.rand(()).item(), random.random(), float(np.random.rand()), float(self.own.random())

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class Unsized:
    """Batch sampler without a length."""

    def __init__(self, n: int, size: int) -> None:
        self.inner = BatchSampler(RandomSampler(range(n)), size, False)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.inner)


def plainly(batch: Any) -> Any:
    return [torch.as_tensor(part).tolist() for part in batch]


def g() -> torch.Generator:
    return torch.Generator().manual_seed(3)


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "shuffle": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "generator": lambda: DataLoader(Noisy(24), 4, shuffle=True, generator=g()),
    "replacement": lambda: DataLoader(Noisy(), 4, sampler=RandomSampler(range(23), True, 70, generator=g())),
    "weighted": lambda: DataLoader(Noisy(), 4, sampler=WeightedRandomSampler(torch.ones(23), 30)),
    "unbatched": lambda: DataLoader(Noisy(9), batch_size=None, shuffle=True),
    "drop_last": lambda: DataLoader(Noisy(), 4, shuffle=True, drop_last=True),
    "batch_sampler": lambda: DataLoader(Noisy(), batch_sampler=BatchSampler(RandomSampler(range(23)), 5, False)),
    "unsized": lambda: DataLoader(Noisy(), batch_sampler=Unsized(23, 4)),  # type: ignore[arg-type]
}


def train(batches: Iterator[Any], out: list[Any]) -> None:
    """Take batches as a training loop does, drawing from the process's generators in between."""
    for batch in batches:
        out.append(plainly(batch))
        torch.rand(3)
        random.random()


def plain_run(loader: DataLoader[Any], epochs: int = 3) -> list[Any]:
    out: list[Any] = []
    rng.seed_process(7)
    for _ in range(epochs):
        train(iter(loader), out)
    return [*out, torch.rand(()).item(), random.random()]


def feed_run(feed: Feed, epochs: int = 3) -> list[Any]:
    out: list[Any] = []
    rng.seed_process(7)
    for epoch in range(epochs):
        train(feed.epoch(epoch), out)
    feed.close()
    return [*out, torch.rand(()).item(), random.random()]


@pytest.mark.parametrize("name", LOADERS)
def test_batches_and_random_draws_are_those_of_a_plain_loop(name: str) -> None:
    """Without workers every sample, every random number and the state at the end are a plain loop's."""
    assert feed_run(Feed(LOADERS[name](), stage="train")) == plain_run(LOADERS[name]())


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_order_and_draws_with_workers_are_those_of_a_plain_loop(persistent: bool, own: bool) -> None:
    """With workers the order of samples and the process's random state are a plain loop's."""

    def make() -> DataLoader[Any]:
        generator = g() if own else None
        return DataLoader(Noisy(), 4, shuffle=True, num_workers=2, persistent_workers=persistent, generator=generator)

    fed, plain = feed_run(Feed(make(), stage="train"), 2), plain_run(make(), 2)
    assert [batch[0] for batch in fed[:-2]] == [batch[0] for batch in plain[:-2]]
    assert fed[-2:] == plain[-2:]


def test_augmentation_is_the_same_for_any_number_of_workers() -> None:
    """Each batch has its own seed, so one worker or two, persistent or not, give the same random numbers."""
    runs = [
        feed_run(Feed(DataLoader(Noisy(13), 4, num_workers=n, persistent_workers=p), stage="train", seed=5), 2)
        for n, p in ((1, False), (2, False), (2, True))
    ]
    runs = [batches[:-2] for batches in runs]  # without the draws at the end, which persistent workers save some of
    assert runs[0] == runs[1] == runs[2]
    first, second = runs[0][0], runs[0][4]
    assert first[0] == second[0]
    assert first[1:] != second[1:]
    other = feed_run(Feed(DataLoader(Noisy(13), 4, num_workers=1), stage="train", seed=6), 1)
    assert other[0][1:] != first[1:]


class AsksWorker(Dataset[Any]):
    """Dataset of what a worker sees of itself."""

    def __init__(self) -> None:
        self.epoch, self.given = -1, ""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[int, str, bool]:
        info = get_worker_info()
        return self.epoch, self.given, info is not None and info.dataset is self

    def __getitems__(self, indices: list[int]) -> list[tuple[int, str, bool]]:
        assert type(indices) is list
        return [self[i] for i in indices]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def give(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.given = f"worker {worker}"  # type: ignore[attr-defined]
    torch.manual_seed(0)


def test_workers_see_the_users_dataset_and_init_function() -> None:
    """The user's dataset is not wrapped, worker_init_fn reaches it, and persistent copies learn the epoch."""
    loader = DataLoader(AsksWorker(), 2, num_workers=1, persistent_workers=True, worker_init_fn=give, collate_fn=list)
    feed = Feed(loader, stage="train")
    for epoch in (0, 1):
        for batch in feed.epoch(epoch):
            assert batch == [(epoch, "worker 0", True)] * 2
    feed.close()


def test_persistent_workers_persist_over_epochs() -> None:
    """One set of worker processes serves all epochs, and closing ends it."""
    feed = Feed(DataLoader(AsksWorker(), 2, num_workers=1, persistent_workers=True, collate_fn=list), stage="train")
    list(feed.epoch(0))
    workers = feed.leaves[0].view._iterator._workers  # type: ignore[attr-defined]
    list(feed.epoch(1))
    assert feed.leaves[0].view._iterator._workers is workers  # type: ignore[attr-defined]
    feed.close()
    assert not any(worker.is_alive() for worker in workers)


def test_the_users_loader_is_left_alone() -> None:
    """A feed changes nothing of the loader that it was given."""
    loader = DataLoader(Noisy(8), 4, num_workers=1, persistent_workers=True)
    before = dict(loader.__dict__)
    feed = Feed(loader, stage="train")
    list(feed.epoch(0))
    feed.close()
    assert {k: v for k, v in loader.__dict__.items() if k != "dataset"} == {
        k: v for k, v in before.items() if k != "dataset"
    }
    assert feed.user is loader


class Countless(IterableDataset[int]):
    """Numbers without a length."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.n))


class Counted(Countless):
    """Numbers with a length."""

    def __len__(self) -> int:
        return self.n


@pytest.mark.parametrize(
    ("source", "batches"),
    [
        (lambda: [1, 2, 3], 3),
        (lambda: DataLoader(Noisy(10), 4), 3),
        (lambda: DataLoader(Noisy(10), batch_sampler=Unsized(10, 4)), 3),
        (lambda: DataLoader(Noisy(10), batch_sampler=Unsized(10, 4), num_workers=1), 3),  # type: ignore[arg-type]
        (lambda: DataLoader(Countless(10), 4), 3),
        (lambda: DataLoader(Counted(10), 4), 3),
        (lambda: DataLoader(Counted(10), 4, num_workers=2), 6),  # each worker gives all of it
        (lambda: lambda: iter("abc"), 3),
        (lambda: [DataLoader(Noisy(10), 4), DataLoader(Noisy(4), 4)], 3),
        (lambda: [DataLoader(Countless(10), 4), DataLoader(Noisy(4), 4)], 3),
    ],
)
@pytest.mark.parametrize("limit", [1.0, 2])
def test_last_is_true_at_the_last_batch_only(source: Callable[[], Any], batches: int, limit: int | float) -> None:
    """Whatever the source, ``last`` marks the last batch, within a limit too."""
    feed = Feed(source(), stage="train", limit=limit)
    for epoch in (0, 1):
        flags = []
        for _ in feed.epoch(epoch):
            flags.append(feed.last)
            assert feed.last is flags[-1]
        assert flags == [False] * (min(batches, 2 if limit == 2 else batches) - 1) + [True]
    feed.close()


def test_looking_ahead_loads_nothing_from_a_map_style_loader() -> None:
    """Asking whether an unsized batch sampler goes on draws indices, never data."""
    loaded: list[int] = []

    class Data(Dataset[int]):
        def __getitem__(self, index: int) -> int:
            loaded.append(index)
            return index

    feed = Feed(DataLoader(Data(), batch_sampler=Unsized(10, 4)), stage="train")  # type: ignore[arg-type]
    assert feed.num_batches == float("inf")
    batches = feed.epoch(0)
    next(batches)
    assert not feed.last
    assert len(loaded) == 4


def test_looking_ahead_happens_only_when_asked() -> None:
    """A stream is drawn no further than was handed out until ``last`` is read."""
    drawn: list[int] = []

    def stream() -> Iterator[int]:
        for i in range(3):
            drawn.append(i)
            yield i

    feed = Feed(stream, stage="train")
    batches = feed.epoch(0)
    assert next(batches) == 0
    assert drawn == [0]
    assert not feed.last
    assert drawn == [0, 1]
    assert list(batches) == [1, 2]


@pytest.mark.parametrize("sizes", [(6, 4), (4, 6), (10, 4), (4, 4)])
def test_the_last_of_several_unsized_loaders_is_known(sizes: tuple[int, int]) -> None:
    """Where the longest of several loaders ends, the epoch does, however far the others are in a pass of their own."""
    loaders = [DataLoader(Noisy(n), batch_sampler=Unsized(n, 2)) for n in sizes]  # type: ignore[arg-type]
    feed = Feed(loaders, stage="train")
    count = max(sizes) // 2
    assert [feed.last for _ in feed.epoch(0)] == [False] * (count - 1) + [True]


def test_indices_of_the_batch_are_known() -> None:
    """``batch_indices`` names the dataset's indices of the batch handed out last, with prefetching workers too."""
    for workers in (0, 2):
        feed = Feed(DataLoader(Noisy(10), 4, shuffle=True, num_workers=workers), stage="train")
        for batch in feed.epoch(0):
            assert feed.batch_indices == batch[0].tolist()
    feed = Feed(DataLoader(Noisy(10), batch_sampler=Unsized(10, 4)), stage="train")  # type: ignore[arg-type]
    assert [(batch[0].tolist() == feed.batch_indices) for batch in feed.epoch(0)] == [True] * 3
    feed = Feed([1, 2], stage="train")
    next(feed.epoch(0))
    assert feed.batch_indices is None


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, 6), (1.0, 6), (4, 4), (1, 1), (100, 6), (0.5, 3), (0.34, 2), (0, 0), (0.0, 0)]
)
def test_limit_is_a_number_or_a_fraction(limit: int | float | None, expected: int) -> None:
    """A whole number limits batches, a float takes that fraction rounded down, None takes all."""
    loader = DataLoader(Noisy(23), 4)
    feed = Feed(loader, stage="train", limit=limit)
    assert feed.num_batches == expected
    assert len(list(feed.epoch(0))) == expected
    feed = Feed([loader, [1] * 9], stage="test", limit=limit)
    assert feed.sizes[0] == expected
    assert len([1 for _, _, number in feed.epoch(0) if number == 0]) == expected


def test_evaluation_names_batch_and_loader() -> None:
    """Evaluation takes one loader after another; a call may take fewer batches of each."""
    feed = Feed({"a": [10, 11], "b": DataLoader(Countless(5), 2), "c": ["x"]}, stage="validate")
    assert feed.names == ["/a", "/b", "/c"]
    assert feed.sizes == [2, float("inf"), 1]
    got = [(i, number) for _, i, number in feed.epoch(0)]
    assert got == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (0, 2)]
    assert [(i, number) for _, i, number in feed.epoch(0, limit=1)] == [(0, 0), (0, 1), (0, 2)]
    assert Feed([[1]], stage="test").names == [""]
    assert Feed([DataLoader(Noisy()), DataLoader(Noisy())], stage="test").names == [
        "/dataloader_idx_0",
        "/dataloader_idx_1",
    ]


def test_training_takes_several_loaders_side_by_side() -> None:
    """A structure of loaders gives batches of that structure; shorter ones start again, unless the mode is another."""
    long, short = [1, 2, 3], [10, 20]
    feed = Feed({"a": long, "b": short}, stage="train")
    assert feed.num_batches == 3
    assert list(feed.epoch(0)) == [{"a": 1, "b": 10}, {"a": 2, "b": 20}, {"a": 3, "b": 10}]
    feed = Feed(CombinedLoader({"a": long, "b": short}, "min_size"), stage="train")
    assert list(feed.epoch(0)) == [{"a": 1, "b": 10}, {"a": 2, "b": 20}]
    feed = Feed(CombinedLoader({"a": long, "b": short}, "max_size"), stage="validate")
    assert [batch for batch, _, _ in feed.epoch(0)][-1] == {"a": 3, "b": None}


def test_each_side_by_side_loader_may_have_its_own_limit() -> None:
    """The limits of a CombinedLoader hold in training: a limited loader starts again after its limit."""
    combined = CombinedLoader({"a": [1, 2, 3], "b": [10, 20, 30]}, "max_size_cycle")
    combined.limits = [3, 1]  # type: ignore[assignment]
    feed = Feed(combined, stage="train")
    assert [batch["b"] for batch in feed.epoch(0)] == [10, 10, 10]


def test_samplers_and_datasets_are_told_the_epoch() -> None:
    """set_epoch is called with the epoch's number on sampler, batch sampler and dataset."""

    class Followed(SequentialSampler):
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    data = Noisy(4)
    sampler = Followed(data)
    feed = Feed(DataLoader(data, 2, sampler=sampler), stage="train")
    list(feed.epoch(3))
    assert sampler.epoch == data.epoch == 3


@pytest.mark.parametrize(("options", "counts"), [({"batch_size": None}, [1, 2, 3]), ({"batch_size": 2}, [2, 4, 5])])
def test_samples_are_counted_as_they_are_handed_out(options: dict[str, Any], counts: list[int]) -> None:
    """A batch counts its samples, a short one fewer, and a sample that comes without a batch is one."""
    feed = Feed(DataLoader(torch.arange(5), **options), stage="train", limit=3)  # type: ignore[arg-type]
    assert [feed.samples for _ in feed.epoch(0)] == counts


def test_sequential_order_keeps_the_last_batch_of_a_sampler_that_says_nothing_of_it() -> None:
    """A batch sampler of the user's own without drop_last gives its short last batch in fixed order, too."""

    class Own:
        batch_size = 4

        def __iter__(self) -> Iterator[list[int]]:
            return iter([[3, 1, 0, 2], [5, 4]])

        def __len__(self) -> int:
            return 2

    with pytest.warns(UserWarning, match="is replaced by a sequential sampler"):
        feed = Feed(DataLoader(torch.arange(6), batch_sampler=Own()), stage="train", sequential=True)  # type: ignore[arg-type]
    assert [batch.tolist() for batch in feed.epoch(0)] == [[0, 1, 2, 3], [4, 5]]


def test_sequential_replaces_shuffling_with_a_warning() -> None:
    """Overfitting takes the first batches of a fixed order and says that the sampler was replaced."""
    with pytest.warns(UserWarning, match="RandomSampler is replaced"):
        feed = Feed(DataLoader(Noisy(), 4, shuffle=True), stage="train", limit=2, sequential=True)
    assert [batch[0].tolist() for batch in feed.epoch(0)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    feed = Feed(DataLoader(Noisy(), 4), stage="train", limit=1, sequential=True)
    assert len(list(feed.epoch(0))) == 1


def test_a_shuffling_evaluation_loader_is_warned_of() -> None:
    """A shuffling loader in evaluation is allowed and warned of."""
    with pytest.warns(PossibleUserWarning, match="shuffle"):
        Feed(DataLoader(Noisy(), 4, shuffle=True), stage="validate")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (DataLoader(Noisy(3), 4, drop_last=True), {}, "at least one batch.*length 0"),
        ([], {}, "at least one batch"),
        ({}, {}, "at least one loader"),
        (3, {}, "must be iterable. Got int"),
        (torch.zeros(3), {}, "must be iterable. Got Tensor"),
        (Noisy(), {}, "wrap it, DataLoader"),
        (DataLoader(Noisy(8), 4), {"limit": 0.1}, "fraction of 2 batches.*0.5"),
        (DataLoader(Countless(8), 4), {"limit": 0.5}, "known length"),
        (CombinedLoader([[1]], "sequential"), {}, "side by side"),
        (CombinedLoader([[1]], "min_size"), {"stage": "predict"}, "one loader after another"),
    ],
)
def test_what_can_not_be_used_is_refused(source: Any, options: dict[str, Any], message: str) -> None:
    """A source or a limit that cannot work is named, with what to do."""
    with pytest.raises(ConfigError, match=f"(?s)my_loader.*{message}"):
        Feed(source, **{"stage": "train", "where": "my_loader", **options})


def test_an_epoch_without_a_batch_is_an_error() -> None:
    """A generator that was used up is named, with what to give in its place."""
    feed = Feed(iter([1, 2]), stage="train", where="my_loader")
    assert list(feed.epoch(0)) == [1, 2]
    with pytest.raises(ConfigError, match=r"my_loader: epoch 1 must have a batch.*give a function"):
        list(feed.epoch(1))


def test_a_limit_may_change_between_epochs() -> None:
    """Another limit holds from the next epoch on."""
    feed = Feed([1, 2, 3], stage="train", limit=1)
    assert list(feed.epoch(0)) == [1]
    feed.relimit(2)
    assert feed.num_batches == 2
    assert list(feed.epoch(1)) == [1, 2]


def test_all_problems_are_reported_at_once() -> None:
    """Two loaders that cannot be used make one error that names both."""
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*/a.*/b"):
        Feed({"a": 3, "b": Noisy()}, stage="test")


def test_a_source_that_ends_before_its_length_is_warned_of() -> None:
    """A wrong __len__ is named, and the epoch ends where the data does."""

    class Liar(list[int]):
        def __len__(self) -> int:
            return 5

    feed = Feed(Liar([1, 2]), stage="train", where="my_loader")
    with pytest.warns(UserWarning, match="my_loader said it has 5 batches but ended after 2"):
        assert list(feed.epoch(0)) == [1, 2]


@pytest.mark.parametrize("source", [lambda: [0] * 50, lambda: DataLoader(Noisy(100), 2)])
def test_a_batch_costs_one_frame(source: Callable[[], Any]) -> None:
    """Between two batches of one sized loader no Python function of ours runs but the generator itself."""
    batches = Feed(source(), stage="train").epoch(0)
    next(batches)
    calls: list[str] = []

    def record(frame: Any, event: str, _: Any) -> None:
        if event == "call" and "lt_core" in frame.f_code.co_filename:
            calls.append(frame.f_code.co_name)

    outer = sys.getprofile()
    sys.setprofile(record)
    for _ in range(20):
        next(batches)
    sys.setprofile(outer)
    assert len(calls) == 20


def world(rank: int, size: int) -> World:
    return World(rank=rank, size=size, data_rank=rank, data_size=size)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1])
def test_ranks_share_every_global_batch(size: int, workers: int) -> None:
    """In training all ranks take equally many steps, and together the order of one process."""
    order: list[list[int]] = [[] for _ in range(8)]
    for rank in range(size):
        rng.seed_process(7)
        feed = Feed(DataLoader(Noisy(22), 4, shuffle=True, num_workers=workers), stage="train", world=world(rank, size))
        steps = [(feed.batch_indices, feed.last) for _ in feed.epoch(0)]
        assert [last for _, last in steps] == [False] * (feed.num_batches - 1) + [True]
        for step, (indices, _) in enumerate(steps):
            order[step].extend(indices or [])
    rng.seed_process(7)
    expected = [i for b in DataLoader(Noisy(22), 4, shuffle=True) for i in b[0].tolist()]
    assert [i for step in order for i in step] == expected


def test_ranks_see_every_sample_once_in_evaluation() -> None:
    """In evaluation the ranks' samples are all samples, each once, whatever the numbers."""
    for n in (1, 5, 8, 13):
        seen = []
        for rank in range(3):
            feed = Feed(DataLoader(Noisy(n), 2), stage="test", world=world(rank, 3))
            for batch, _, _ in feed.epoch(0):
                seen.extend(batch[0].tolist() if feed.weight else [])
        assert sorted(seen) == list(range(n))


@pytest.mark.parametrize("n", [1, 5, 8, 13])
def test_ranks_evaluate_equally_often_where_they_must(n: int) -> None:
    """With shadows each rank gets equally many batches; without, a rank that has none of its own gets one."""
    for shadows in (True, False):
        feeds = [Feed(DataLoader(Noisy(n), 2), stage="test", world=world(r, 3), shadows=shadows) for r in range(3)]
        counts = [len([feed.weight for _ in feed.epoch(0)]) for feed in feeds]
        assert min(counts) >= 1
        assert len(set(counts)) == 1 or not shadows


def test_weights_make_the_mean_over_ranks_that_over_samples() -> None:
    """The weighted mean over ranks of a short global batch is the mean over its samples."""
    losses = []
    for rank in range(2):
        feed = Feed(DataLoader(Noisy(11), 4), stage="train", world=world(rank, 2))
        losses.append([batch[0].double().mean().item() * feed.weight for batch in feed.epoch(0)])
    assert [sum(step) / 2 for step in zip(*losses, strict=True)] == pytest.approx([3.5, 9.0])


def test_ranks_draw_their_order_from_rank_zero() -> None:
    """Ranks whose random states differ agree on each epoch's order; rank 0's state advances, the others' does not."""
    states: list[Any] = []
    orders: list[list[list[int]]] = [[], []]
    draws = []
    for rank in range(2):
        rng.seed_process(rank)
        sent = iter(list(states))

        class Sent(PlainCollectives):
            def broadcast_object(self, obj: Any, src: int = 0, sent: Iterator[Any] = sent) -> Any:
                states.append(obj)
                return next(sent, obj)

        data: Any = DataLoader(list(range(8)), 2, shuffle=True)  # type: ignore[arg-type]
        feed = Feed(data, stage="train", world=world(rank, 2), collectives=Sent())
        for epoch in range(2):
            orders[epoch].extend([feed.batch_indices or [] for _ in feed.epoch(epoch)])
        draws.append([torch.rand(()).item() for _ in range(17)])
    orders = [[order[0], order[2], order[1], order[3]] for order in orders]
    rng.seed_process(0)
    alone = [[b.tolist() for b in DataLoader(list(range(8)), 2, shuffle=True)] for _ in range(2)]  # type: ignore[arg-type]
    assert orders == alone
    assert orders[0] != orders[1]
    rng.seed_process(1)
    assert draws[1] == [torch.rand(()).item() for _ in range(17)]


@pytest.mark.parametrize("own", [False, True])
def test_peers_that_share_their_samples_draw_one_order(own: bool) -> None:
    """Ranks of one data rank, as in tensor parallelism, draw rank 0's order, from a loader's own generator too."""
    states: list[Any] = []
    orders = []
    for rank in range(2):
        rng.seed_process(rank)

        class Sent(PlainCollectives):
            def broadcast_object(self, obj: Any, src: int = 0) -> Any:
                states.append(obj)
                return states[0]

        generator = torch.Generator().manual_seed(rank) if own else None
        data = DataLoader(Noisy(8), 2, shuffle=True, generator=generator)
        feed = Feed(data, stage="train", world=World(rank=rank, size=2), collectives=Sent())
        orders.append([feed.batch_indices for _ in feed.epoch(0)])
    assert orders[0] == orders[1]
