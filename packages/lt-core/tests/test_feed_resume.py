"""Test that a feed goes on inside an epoch exactly where it was, loading nothing twice."""

from __future__ import annotations

import pickle
import random
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from plain import plainly
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lt_core.data import CombinedLoader, Feed
from lt_core.state import rng
from lt_interface import World
from lt_interface.errors import CheckpointError


class Noisy(Dataset[Any]):
    """Indices with random numbers of every kind; what is loaded is counted."""

    def __init__(self, n: int = 23) -> None:
        self.n, self.own = n, np.random.default_rng(0)
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[int, float, float, float, float]:
        self.loaded.append(index)
        return index, torch.rand(()).item(), random.random(), float(np.random.rand()), float(self.own.random())


class Unsized:
    """Batch sampler without a length."""

    def __init__(self, n: int, size: int) -> None:
        self.inner = BatchSampler(RandomSampler(range(n)), size, False)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.inner)


class Eager:
    """Sampler that draws the order when iteration begins, not at the first index."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(23).tolist())

    def __len__(self) -> int:
        return 23


def g() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def fix(worker: int) -> None:
    torch.manual_seed(worker)


def loader(*args: Any, n: int = 23, **options: Any) -> Callable[[], DataLoader[Any]]:
    return lambda: DataLoader(
        Noisy(n), *args, **{k: v() if callable(v) and k != "worker_init_fn" else v for k, v in options.items()}
    )


MAPPED: dict[str, Callable[[], Any]] = {
    "shuffle": loader(4, shuffle=True),
    "sequential": loader(4),
    "generator": loader(4, n=24, shuffle=True, generator=g),
    "replacement": loader(4, sampler=lambda: RandomSampler(range(23), True, 70, generator=g())),
    "weighted": loader(4, sampler=lambda: WeightedRandomSampler(torch.ones(23), 30)),
    "eager": loader(4, sampler=Eager),
    "unbatched": loader(n=9, batch_size=None, shuffle=True),
    "drop_last": loader(4, shuffle=True, drop_last=True),
    "batch_sampler": loader(batch_sampler=lambda: BatchSampler(RandomSampler(range(23)), 5, False)),
    "unsized": loader(batch_sampler=lambda: Unsized(23, 4)),
    "two loaders": lambda: {"a": loader(4, shuffle=True)(), "b": loader(3, n=8, shuffle=True, generator=g)()},
    "shortest": lambda: CombinedLoader([loader(4, shuffle=True)(), loader(3, n=8, shuffle=True)()], "min_size"),
    "padded": lambda: CombinedLoader([loader(4, shuffle=True)(), loader(3, n=8, shuffle=True)()], "max_size"),
    "unsized pair": lambda: [loader(batch_sampler=lambda: Unsized(23, 4))(), loader(3, n=8, shuffle=True)()],
}
WORKED: dict[str, Callable[[], Any]] = {
    "workers": loader(4, shuffle=True, num_workers=2),
    "workers, generator": loader(4, n=24, shuffle=True, num_workers=2, generator=g),
    "workers, eager": loader(4, sampler=Eager, num_workers=2),
    "workers, init": loader(4, shuffle=True, num_workers=2, worker_init_fn=fix),
    "workers, unsized": loader(batch_sampler=lambda: Unsized(23, 4), num_workers=2),
    "persistent": loader(4, shuffle=True, num_workers=2, persistent_workers=True),
    "persistent, generator": loader(4, n=24, shuffle=True, num_workers=2, persistent_workers=True, generator=g),
    "persistent, weighted": loader(
        4, sampler=lambda: WeightedRandomSampler(torch.ones(23), 30), num_workers=2, persistent_workers=True
    ),
    "persistent pair": lambda: [
        loader(4, shuffle=True, num_workers=1, persistent_workers=True)(),
        loader(3, n=8, shuffle=True, num_workers=1, persistent_workers=True)(),
    ],
}


Run = tuple[list[Any], list[Any]]


def run(make: Callable[[], Any], epochs: int, cut: int | None = None, ask: bool = True) -> Run:
    """Take all batches as a trainer does; with ``cut``, save after that many and go on in a fresh feed.

    Returns:
        Batches with what ``last`` said; and draws of the process's generators at the end.
    """
    rng.seed_process(7)
    source = make()
    feed = Feed(source, stage="train", seed=1)
    out: list[Any] = []
    epoch = 0
    batches = feed.epoch(0)
    while epoch < epochs:
        for batch in batches:
            out.append((plainly(batch), feed.last if ask else None))
            torch.rand(3)
            random.random()
            if len(out) == cut:
                state = pickle.dumps((feed.state_dict(), rng.capture()))
                feed.close()
                rng.seed_process(99)
                source = make()
                feed = Feed(source, stage="train", seed=2)
                place, own = pickle.loads(state)
                feed.load_state_dict(place)
                rng.restore(own)
                batches = feed.resume(epoch)
                assert not [one for leaf in feed.loaders for one in leaf.dataset.__dict__.get("loaded", [])]
                break
        else:
            feed.close_epoch()
            epoch += 1
            if epoch < epochs:
                batches = feed.epoch(epoch)
    feed.close()
    return out, [torch.rand(()).item(), random.random(), float(np.random.rand())]


def assert_resumes(make: Callable[[], Any], epochs: int, fractions: tuple[float, ...], ask: bool = True) -> None:
    whole = run(make, epochs, ask=ask)
    for cut in sorted({max(1, round(part * len(whole[0]))) for part in fractions}):
        assert run(make, epochs, cut, ask) == whole, f"cut after {cut} of {len(whole[0])}"


@pytest.mark.parametrize("name", MAPPED)
def test_resume_is_exact_without_workers(name: str) -> None:
    """Cut anywhere, the rest is bit for bit that of an uninterrupted run, and no skipped sample is loaded."""
    assert_resumes(MAPPED[name], 3, (0, 0.2, 1 / 3, 0.5, 2 / 3, 0.9, 1))


@pytest.mark.parametrize("name", WORKED)
def test_resume_is_exact_with_workers(name: str) -> None:
    """The same holds with prefetching workers, persistent or not."""
    assert_resumes(WORKED[name], 2, (0.25, 0.75))


@pytest.mark.parametrize("name", ["generator", "persistent", "persistent, generator"])
def test_a_closed_epoch_resumes_exactly(name: str) -> None:
    """Saved between two epochs, the next ones are those of an uninterrupted run."""
    make = {**MAPPED, **WORKED}[name]
    outcomes = []
    for interrupted in (False, True):
        rng.seed_process(7)
        feed = Feed(make(), stage="train", seed=1)
        out: list[Any] = []
        for epoch in range(3):
            if epoch == 1 and interrupted:
                place, own = pickle.loads(pickle.dumps((feed.state_dict(), rng.capture())))
                feed.close()
                rng.seed_process(5)
                feed = Feed(make(), stage="train", seed=1)
                feed.load_state_dict(place)
                rng.restore(own)
            for batch in feed.epoch(epoch):
                out.append(plainly(batch))
                torch.rand(3)
            feed.close_epoch()
        feed.close()
        outcomes.append((out, torch.rand(()).item()))
    assert outcomes[0] == outcomes[1]


def test_resume_is_the_callers_random_state() -> None:
    """Going to the place leaves the process's generators as the caller set them."""
    feed = Feed(loader(4, shuffle=True)(), stage="train")
    batches = feed.epoch(0)
    next(batches)
    state = feed.state_dict()
    feed = Feed(loader(4, shuffle=True)(), stage="train")
    feed.load_state_dict(state)
    rng.seed_process(11)
    expected = torch.rand(()).item(), random.random()
    rng.seed_process(11)
    feed.resume(0)
    assert (torch.rand(()).item(), random.random()) == expected


def test_resume_works_with_another_number_of_workers() -> None:
    """Order and augmentation go on the same when a resumed run has more workers."""
    whole, _ = run(loader(4, shuffle=True, num_workers=1, generator=g), 1)
    rng.seed_process(7)
    feed = Feed(loader(4, shuffle=True, num_workers=1, generator=g)(), stage="train", seed=1)
    batches = feed.epoch(0)
    for _ in range(2):
        next(batches)
    state = feed.state_dict()
    feed.close()
    feed = Feed(loader(4, shuffle=True, num_workers=2, generator=g)(), stage="train")
    feed.load_state_dict(state)
    assert [plainly(batch) for batch in feed.resume(0)] == [batch for batch, _ in whole[2:]]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3)])
def test_resume_works_with_another_number_of_ranks(before: int, after: int) -> None:
    """The global stream goes on where it was, shared among the new ranks."""

    def feeds(size: int) -> list[Feed]:
        worlds = [World(rank=r, size=size, data_rank=r, data_size=size) for r in range(size)]
        return [Feed(loader(3, n=31, shuffle=True)(), stage="train", world=w) for w in worlds]

    seen: list[int] = []
    states = []
    for feed in feeds(before):
        rng.seed_process(7)
        batches = feed.epoch(0)
        for _ in range(2):
            next(batches)
            seen.extend(feed.batch_indices or [])
        states.append(feed.state_dict())
    for feed in feeds(after):
        feed.load_state_dict(states[0])
        flags = []
        for _ in feed.resume(0):
            flags.append(feed.last)
            seen.extend(feed.batch_indices or [] if feed.weight else [])  # a repeated sample weighs nothing
        assert flags.index(True) == len(flags) - 1
    assert sorted(seen) == list(range(31))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("ranks", "batch"), [(1, 8), (1, 5), (1, 3), (2, 3), (2, 5)])
def test_resume_works_with_another_batch_size(ranks: int, batch: int, workers: int) -> None:
    """Two ranks of 4 go on at their sample, as any number of ranks with any batch size; no sample is seen twice."""
    worlds = {size: [World(rank=r, size=size, data_rank=r, data_size=size) for r in range(size)] for size in (1, 2)}
    seen, state = [], {}
    for one in worlds[2]:
        rng.seed_process(7)
        feed = Feed(loader(4, n=31, shuffle=True)(), stage="train", world=one)
        batches = feed.epoch(0)
        for _ in range(2):
            next(batches)
            seen.extend(feed.batch_indices or [])
        state = feed.state_dict() if one.rank == 0 else state
    assert state["leaves"][0]["place_in_samples"] == 16
    for one in worlds[ranks]:
        make = loader(batch, n=31, shuffle=True, num_workers=workers)
        feed = Feed(make(), stage="train", world=one)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the number of batches is another one
            feed.load_state_dict(state)
        for _ in feed.resume(0):
            seen.extend(feed.batch_indices or [] if feed.weight else [])
        feed.close()
    assert sorted(seen) == list(range(31))


def test_skipping_an_index_costs_at_most_a_microsecond() -> None:
    """Going far into an epoch is a matter of indices."""
    data = TensorDataset(torch.arange(200_000))

    def make() -> Feed:
        return Feed(DataLoader(data, 32, shuffle=True), stage="train")

    feed = make()
    feed.epoch(0)
    state = feed.state_dict()
    state["leaves"][0]["batches"] = state["rounds"] = 6000
    state["leaves"][0]["place_in_samples"] = 192_000
    feed = make()
    feed.load_state_dict(state)
    start = time.process_time()
    batches = feed.resume(0)
    assert time.process_time() - start < 192_000 * 1e-6
    assert len(list(batches)) == 250


class Stream(IterableDataset[Any]):
    """Numbers in a random order, with noise."""

    drawn = 0

    def __iter__(self) -> Iterator[Any]:
        for index in torch.randperm(20).tolist():
            Stream.drawn += 1
            yield index, torch.rand(()).item()


class Remembering(Stream):
    """Numbers in a random order, whose place is kept."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.place = 0
        self.given = False

    def __iter__(self) -> Iterator[Any]:
        if not self.given:
            self.order, self.place = torch.randperm(20).tolist(), 0
        self.given = False
        while self.place < len(self.order):
            Stream.drawn += 1
            self.place += 1
            yield self.order[self.place - 1], torch.rand(()).item()

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.place, self.given = state["order"], state["place"], True


@pytest.mark.parametrize("ask", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterable_dataset_is_forwarded_with_a_warning_of_the_cost(workers: int, ask: bool) -> None:
    """An iterable dataset resumes exactly by counted forwarding; one warning says how many batches that loads."""

    def make() -> DataLoader[Any]:
        return DataLoader(Stream(), 3, num_workers=workers)

    whole = run(make, 2, ask=ask)
    for cut in (2, len(whole[0]) // 2 + 3):
        with pytest.warns(UserWarning, match=r"DataLoader\(Stream\).* first \d batches are loaded once more") as seen:
            assert run(make, 2, cut, ask) == whole
        assert len(seen) == 1


@pytest.mark.parametrize("ask", [True, False])
def test_a_stateful_iterable_dataset_loads_nothing_twice(ask: bool) -> None:
    """An iterable dataset with state_dict goes on at its own place."""

    def make() -> DataLoader[Any]:
        return DataLoader(Remembering(), 3)

    Stream.drawn = 0
    whole = run(make, 2, ask=ask)
    drawn = Stream.drawn
    for cut in (2, 9):
        Stream.drawn = 0
        assert run(make, 2, cut, ask) == whole
        assert Stream.drawn <= drawn + 3


class StatefulLoader:
    """Loader of its own kind that keeps its place."""

    def __init__(self) -> None:
        self.place = 0

    def __iter__(self) -> Iterator[Any]:
        while self.place < 6:
            self.place += 1
            yield self.place, torch.rand(()).item()
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class Wrapping(DataLoader[Any]):
    """Loader that changes what iterating a DataLoader gives."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            yield {"batch": batch}


def states(feed: Feed, source: Callable[[], Any], cut: int) -> tuple[list[Any], list[Any]]:
    """Return the batches of an uninterrupted epoch from ``cut`` on, and those of a resumed one."""
    rng.seed_process(7)
    whole = [plainly(batch) for batch in feed.epoch(0)]
    rng.seed_process(7)
    feed = Feed(source(), stage="train")
    batches = feed.epoch(0)
    for _ in range(cut):
        next(batches)
    state, own = feed.state_dict(), rng.capture()
    feed = Feed(source(), stage="train")
    feed.load_state_dict(state)
    rng.restore(own)
    return whole[cut:], [plainly(batch) for batch in feed.resume(0)]


def test_lists_and_stateful_loaders_resume_without_a_word() -> None:
    """A list of batches is skipped for nothing; a loader with state_dict keeps its own place."""
    batches = [torch.tensor(i) for i in range(6)]
    for source in (lambda: batches, StatefulLoader):
        expected, resumed = states(Feed(source(), stage="train"), source, 4)
        assert resumed == expected


def test_other_sources_resume_by_counting() -> None:
    """Functions that make generators, and loaders that iterate their own way, are forwarded with a warning."""

    def numbers() -> Iterator[int]:
        yield from range(6)

    for source in (lambda: numbers, lambda: Wrapping(Noisy(12), 2, shuffle=True)):
        with pytest.warns(UserWarning, match="first 4 batches are loaded once more"):
            expected, resumed = states(Feed(source(), stage="train"), source, 4)
        assert resumed == expected


@pytest.mark.parametrize("said", [3, 4, 5, 9])
def test_a_resumed_epoch_ends_where_its_data_ends(said: int) -> None:
    """Whatever length a loader without indices says, all its batches come after a resume, as they do without one."""

    class Untrue:
        def __len__(self) -> int:
            return said

        def __iter__(self) -> Iterator[int]:
            return iter(range(6))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the length, and of loading batches once more
        expected, resumed = states(Feed(Untrue(), stage="train"), Untrue, 2)
    assert resumed == expected == [2, 3, 4, 5]


def test_asking_for_the_place_takes_nothing_from_a_loader() -> None:
    """A save in an epoch fetches no batch ahead, whether its size is known or not."""
    given: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(4):
            given.append(number)
            yield number

    feed = Feed(numbers, stage="train")
    for batch in feed.epoch(0):
        feed.state_dict()
        assert given[-1] == batch
    noisy = Noisy(6)
    feed = Feed(DataLoader(noisy, 2), stage="train")
    assert [feed.state_dict()["leaves"][0]["batches"] for _ in feed.epoch(0)] == [1, 2, 3]
    assert noisy.loaded == list(range(6))


def test_a_generator_that_can_be_used_once_goes_on_over_epochs() -> None:
    """A plain generator is one stream over all epochs, and each resume counts from its very start."""

    def numbers() -> Iterator[int]:
        yield from range(100)

    feed = Feed(numbers(), stage="train", limit=4)
    assert list(feed.epoch(0)) == [0, 1, 2, 3]
    batches = feed.epoch(1)
    assert [next(batches), next(batches)] == [4, 5]
    state = feed.state_dict()
    feed = Feed(numbers(), stage="train", limit=4)
    with pytest.warns(UserWarning, match="first 6 batches"):
        feed.load_state_dict(state)
    assert list(feed.resume(1)) == [6, 7]
    assert list(feed.epoch(2)) == [8, 9, 10, 11]
    assert next(feed.epoch(3)) == 12
    state, feed = feed.state_dict(), Feed(numbers(), stage="train", limit=4)
    with pytest.warns(UserWarning, match="first 13 batches"):
        feed.load_state_dict(state)
    assert list(feed.resume(3)) == [13, 14, 15]


def test_a_stateful_map_style_dataset_is_restored() -> None:
    """A dataset's own state_dict is saved and given back before the first batch."""

    class Curriculum(Noisy):
        level = 0

        def state_dict(self) -> dict[str, int]:
            return {"level": self.level}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.level = state["level"]

    one, other = Curriculum(), Curriculum()
    one.level = 4
    feed = Feed(DataLoader(one, 4), stage="train")
    next(feed.epoch(0))
    second = Feed(DataLoader(other, 4), stage="train")
    second.load_state_dict(feed.state_dict())
    assert other.level == 4


def test_a_place_saved_between_epochs_begins_the_next_one() -> None:
    """Saved before an epoch's iterators were made, resuming that epoch is beginning it."""
    feed = Feed([1, 2, 3], stage="train")
    fresh = feed.state_dict()
    list(feed.epoch(0))
    feed.close_epoch()
    for state, epoch in ((fresh, 0), (feed.state_dict(), 1)):
        other = Feed([1, 2, 3], stage="train")
        other.load_state_dict(state)
        assert list(other.resume(epoch)) == [1, 2, 3]


def test_other_loaders_than_saved_are_refused_and_other_sizes_warned_of() -> None:
    """Another number of loaders cannot resume; another length can, with a warning."""
    feed = Feed([1, 2, 3], stage="train")
    next(feed.epoch(0))
    state = feed.state_dict()
    with pytest.raises(CheckpointError, match="Got 2 where there were 1"):
        Feed({"a": [1], "b": [2]}, stage="train").load_state_dict(state)
    with pytest.warns(UserWarning, match="4 batches now, 3 when"):
        Feed([1, 2, 3, 4], stage="train").load_state_dict(state)
    with pytest.raises(CheckpointError, match="needs a state"):
        Feed([1], stage="train").resume(0)
