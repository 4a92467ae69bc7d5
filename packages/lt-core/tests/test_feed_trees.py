"""A feed over any tree of loaders goes on, wherever it is cut, with exactly the batches of an uncut run."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from plain import plainly
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler

from lt_core.data import CombinedLoader, Feed
from lt_core.state import rng
from lt_interface import ConfigError

# What goes on without a state of its own is read again up to its place, and the user is warned of it.
pytestmark = pytest.mark.filterwarnings("ignore")
Make = Callable[[], Any]


class Drawn(Dataset[Any]):
    """Indices, each with a number from every generator of the process."""

    def __init__(self, first: int, n: int) -> None:
        self.first, self.n = first, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[int, float, float]:
        return self.first + index, torch.rand(()).item(), random.random()


class Streamed(IterableDataset[int]):
    """Numbers in order."""

    def __init__(self, first: int, n: int) -> None:
        self.first, self.n = first, n

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.first + self.n))


class Kept(Streamed):
    """Numbers in order that goes on where it was left, and begins again after its end."""

    at = 0

    def __iter__(self) -> Iterator[int]:
        while self.at < self.n:
            self.at += 1
            yield self.first + self.at - 1
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class Sized(Streamed):
    """Numbers in order that knows how many."""

    def __len__(self) -> int:
        return self.n


class Wrapping(Kept):
    """Numbers in order that stands at its beginning again as soon as it has given the last."""

    def __iter__(self) -> Iterator[int]:
        for index in range(self.at, self.n):
            self.at = (index + 1) % self.n
            yield self.first + index


class Marked(Streamed):
    """Numbers of a new pass in each iteration, but of the rest of one in the iteration that follows a load."""

    at = number = 0
    rest: dict[str, int] | None = None

    def __iter__(self) -> Iterator[int]:
        rest, self.rest = self.rest, None
        self.number = rest["number"] if rest else self.number + 1
        for index in range(rest["at"] if rest else 0, self.n):
            self.at = index + 1
            yield self.first + index + 1000 * self.number

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at, "number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.rest = dict(state)


class MarkedAtOnce(Marked):
    """The same, where an iteration begins when it is asked for and not with its first number."""

    def __iter__(self) -> Iterator[int]:
        rest, self.rest = self.rest, None
        self.number = rest["number"] if rest else self.number + 1
        return self._from(rest["at"] if rest else 0)

    def _from(self, begin: int) -> Iterator[int]:
        for index in range(begin, self.n):
            self.at = index + 1
            yield self.first + index + 1000 * self.number


class KeptLoader:
    """Batches in order from what goes on where it was left, without a length."""

    def __init__(self, first: int, n: int, kind: type[Any] = Kept) -> None:
        self.data = kind(first, n)
        self.state_dict, self.load_state_dict = self.data.state_dict, self.data.load_state_dict

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (torch.tensor([number]) for number in self.data)


def seeded(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(seed)


@st.composite
def leaves(draw: st.DrawFn) -> Make:
    """Draw a function that makes one loader: the same each time."""
    first, n, size = 100 * draw(st.integers(0, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 4))
    seed, drop = draw(st.none() | st.integers(0, 3)), draw(st.booleans()) and n >= size

    def data() -> Drawn:
        return Drawn(first, n)

    kinds: dict[str, Make] = {
        "in order": lambda: DataLoader(data(), size, drop_last=drop),
        "shuffled": lambda: DataLoader(data(), size, shuffle=True, drop_last=drop, generator=seeded(seed)),
        "unbatched": lambda: DataLoader(data(), batch_size=None, shuffle=True, generator=seeded(seed)),
        "replaced": lambda: DataLoader(data(), size, sampler=RandomSampler(range(n), True, n + 3)),
        "weighted": lambda: DataLoader(
            data(), size, sampler=WeightedRandomSampler([1.0] * n, n, generator=seeded(seed))
        ),
        "batch sampler": lambda: DataLoader(
            data(), batch_sampler=BatchSampler(RandomSampler(range(n), generator=seeded(seed)), size, drop)
        ),
        "stream": lambda: DataLoader(Streamed(first, n), size, drop_last=drop),
        "sized stream": lambda: DataLoader(Sized(first, n), size),
        "stream with a state": lambda: DataLoader(Kept(first, n), size, drop_last=drop),
        "unbatched stream with a state": lambda: DataLoader(Kept(first, n), batch_size=None),
        "stream with a mark": lambda: DataLoader(Marked(first, n), size, drop_last=drop),
        "loader with a mark": lambda: KeptLoader(first, n, Marked),
        "loader with a state": lambda: KeptLoader(first, n),
        "list": lambda: [torch.arange(i, i + 2) + first for i in range(n)],
        "function": lambda: lambda: (torch.arange(i, i + 2) + first for i in range(n)),
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))]


def filled(tree: Any) -> Any:
    """Call what makes each loader of a tree."""
    if isinstance(tree, dict):
        return {key: filled(item) for key, item in tree.items()}
    if isinstance(tree, tuple) and tree and tree[0] == "list":
        return [filled(item) for item in tree[1]]
    return tree()


NODES = st.recursive(
    leaves(),
    lambda inner: (
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=2)
        | st.tuples(st.just("list"), st.lists(inner, min_size=1, max_size=2))
    ),
    max_leaves=4,
)
MODES = st.sampled_from([None, "min_size", "max_size", "max_size_cycle"])


def made(tree: Any, mode: str | None) -> Any:
    """Return the loaders of a tree. A list of batches counts as one loader only beside others in a dict."""
    loaders = filled(tree)
    return loaders if mode is None else CombinedLoader(loaders, mode)


def trained(make: Make, epochs: int, limit: Any, ask: bool, cuts: list[int]) -> Any:
    """Return the batches of some epochs, what `last` said of each, and draws at the end.

    Args:
        make: Makes the loaders.
        epochs: How many epochs.
        limit: The feed's limit.
        ask: Whether `last` is asked at each batch.
        cuts: After how many batches the feed is saved, thrown away and made anew; a number twice does it twice.
    """
    rng.seed_process(7)
    feed, out, epoch = Feed(make(), stage="train", seed=1, limit=limit), list[Any](), 0
    batches = feed.epoch(0)
    while epoch < epochs:
        for batch in batches:
            out.append((epoch, plainly(batch), feed.last if ask else None))
            torch.rand(3)
            random.random()
            for _ in range(cuts.count(len(out))):
                state = pickle.dumps((feed.state_dict(), rng.capture()))
                feed.close()
                rng.seed_process(99)
                feed = Feed(make(), stage="train", seed=2, limit=limit)
                place, own = pickle.loads(state)
                feed.load_state_dict(place)
                rng.restore(own)
                batches = feed.resume(epoch)
            if len(out) in cuts:
                break
        else:
            feed.close_epoch()
            epoch += 1
            batches = feed.epoch(epoch) if epoch < epochs else batches
    feed.close()
    return out, torch.rand(()).item(), random.random()


def check(tree: Any, mode: str | None, limit: Any, ask: bool, data: st.DataObject) -> None:
    def make() -> Any:
        return made(tree, mode)

    try:
        whole = trained(make, 2, limit, ask, [])
    except ConfigError:  # what the shortest loader left at its very end gives no batch to the next epoch
        assume(False)
    count = len(whole[0])
    cuts = data.draw(st.lists(st.integers(1, count), min_size=1, max_size=3), label="cuts")
    assert trained(make, 2, limit, ask, cuts) == whole


CASES = (NODES, MODES, st.sampled_from([1.0, 1.0, 1, 3]), st.booleans(), st.data())
RULES = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=50, **RULES)  # type: ignore[arg-type]
@given(*CASES)
def test_a_cut_run_is_the_uncut_one(tree: Any, mode: str | None, limit: Any, ask: bool, data: st.DataObject) -> None:
    """Saved after any batches and made anew, a feed gives the rest of the batches, bit for bit, and the same draws."""
    check(tree, mode, limit, ask, data)


@pytest.mark.slow
@settings(max_examples=500, **RULES)  # type: ignore[arg-type]
@given(*CASES)
def test_a_cut_run_is_the_uncut_one_often(
    tree: Any, mode: str | None, limit: Any, ask: bool, data: st.DataObject
) -> None:
    """The same for many more trees."""
    check(tree, mode, limit, ask, data)


@pytest.mark.parametrize("cut", range(1, 7))
@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize(
    "make",
    [lambda: DataLoader(Wrapping(0, 3), 1), lambda: DataLoader(Wrapping(0, 5), 2), lambda: KeptLoader(0, 3, Wrapping)],
)
def test_what_begins_anew_at_once_is_not_read_twice(make: Make, ask: bool, cut: int) -> None:
    """A source whose state at its end is that of its beginning is known to be over, though nobody asked before.

    It stays so for a run that resumes and saves before it has trained anything.
    """
    whole = trained(make, 2, 1.0, ask, [])
    assert trained(make, 2, 1.0, ask, [cut]) == trained(make, 2, 1.0, ask, [cut, cut]) == whole


@pytest.mark.parametrize("limit", [1, 2, 3, 1.0])
@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("kind", [Marked, MarkedAtOnce, Kept, Wrapping])
def test_an_epoch_that_a_limit_ends_is_followed_by_the_same_one(kind: type[Any], ask: bool, limit: Any) -> None:
    """What begins anew with each iteration does so behind a resume, and what goes on goes on, wherever it was cut."""
    makes: list[Make] = [lambda: DataLoader(kind(0, 7), 2), lambda: DataLoader(kind(0, 7), None)]
    makes += [lambda: KeptLoader(0, 7, kind), lambda: {"a": DataLoader(kind(0, 7), 2), "b": DataLoader(kind(50, 5), 2)}]
    for make in makes:
        whole = trained(make, 3, limit, ask, [])
        for cut in range(1, len(whole[0]) + 1):
            assert trained(make, 3, limit, ask, [cut]) == whole


@pytest.mark.parametrize("kind", [Marked, MarkedAtOnce, Kept, Wrapping])
@pytest.mark.parametrize("limit", [2, 1.0])
def test_a_state_saved_between_epochs_begins_the_next(kind: type[Any], limit: Any) -> None:
    """A feed that was closed behind an epoch, saved and made anew, gives the epochs that would have followed."""

    def epochs(cut: int | None) -> list[Any]:
        feed, out = Feed(DataLoader(kind(0, 7), 2), stage="train", limit=limit), []
        for epoch in range(3):
            out.append([batch.tolist() for batch in feed.epoch(epoch)])
            feed.close_epoch()
            if epoch == cut:
                state = pickle.loads(pickle.dumps(feed.state_dict()))
                feed = Feed(DataLoader(kind(0, 7), 2), stage="train", limit=limit)
                feed.load_state_dict(state)
        return out

    assert epochs(0) == epochs(1) == epochs(None)


BESIDE: dict[str, Make] = {
    "stream": lambda: DataLoader(Streamed(0, 3)),
    "stream with a state": lambda: DataLoader(Kept(0, 3), 2),
    "stream with a mark": lambda: DataLoader(Marked(0, 3), 2),
    "loader with a state": lambda: KeptLoader(0, 3),
    "one batch": lambda: KeptLoader(0, 1),
    "list": lambda: [torch.arange(i, i + 2) for i in range(3)],
}


@pytest.mark.parametrize("mode", [None, "max_size", "min_size"])
@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("kind", BESIDE)
def test_a_loader_that_ended_before_the_others_draws_no_more(kind: str, seed: int | None, mode: str | None) -> None:
    """Of two loaders one ends or starts again before the other: draws of both are those of an uncut run."""
    for size in (1, 3):

        def make(size: int = size) -> Any:
            drawing = DataLoader(Drawn(0, 3), size, shuffle=True, generator=seeded(seed))
            loaders = [BESIDE[kind](), drawing]
            return loaders if mode is None else CombinedLoader(loaders, mode)

        whole = trained(make, 2, 1.0, False, [])
        for cuts in ([1], [2], [3], [1, 2], [2, 3]):
            assert trained(make, 2, 1.0, False, cuts) == whole
