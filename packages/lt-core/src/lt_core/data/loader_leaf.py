"""Deliver from a torch DataLoader, and choose the leaf that fits what the user gave.

A DataLoader is never made anew: a shallow copy of it, the *view*, gets an ``IndexStream`` in the place
of its batch sampler. One view serves the whole run, so that persistent workers persist.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any, cast

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from lt_core.data.leaf import END, Leaf, SequenceLeaf, is_stateful, length, shut_down, state_of
from lt_core.data.opaque_leaf import OpaqueLeaf, fast_forward
from lt_core.data.stream import IndexStream, find_generators, is_sharded, samplers_in, share_count
from lt_core.notices import warn
from lt_core.state import rng
from lt_interface import CheckpointError, World

__all__ = ["ViewLeaf", "make_leaf"]

_INF = float("inf")


class ViewLeaf(Leaf):
    """Torch DataLoader that is served through a view of it, over a map-style or an iterable dataset."""

    def __init__(
        self, user: DataLoader[Any], number: int, *, world: World, seed: int, train: bool, sequential: bool
    ) -> None:
        self.indexed = not isinstance(user.dataset, IterableDataset)
        inner = _in_order(user) if sequential and self.indexed else user._index_sampler
        shared = self.indexed and not is_sharded(inner)
        self.cut = world.data_size if shared else 1
        self.even = shared
        self.stream = IndexStream(
            inner,
            workers=user.num_workers,
            world=world if shared else None,
            short="drop" if train and user.drop_last else "split",
            seed=seed,
            loader=number,
            generator=user.generator,
        )
        self.view = _view(user, self.stream)
        super().__init__(user, number, self.stream if self.indexed else user)
        # Torch's own samplers give as many indices as they say, and draw when a pass begins, not with each index.
        plain = all(type(s).__module__.startswith("torch.") for s in samplers_in(user.sampler, inner))
        self.exact = self.indexed and plain
        self.generators = find_generators(self.view, self.stream.inner)
        self.sampling = find_generators(self.stream.inner, user.generator) if self.indexed else []
        self.stateful = is_stateful(user.dataset)
        self.persistent = bool(user.persistent_workers and user.num_workers)
        self.prefetch = (user.prefetch_factor or 0) * user.num_workers
        # Batches that overtake one another cannot be matched with their indices.
        self.ordered = getattr(user, "in_order", True) or user.num_workers < 2
        self.fresh, self._rewarm = True, False
        self.peek_draws = not user.num_workers
        self.early = bool(user.num_workers) and not self.stateful and plain
        # An iterable dataset keeps its own place; copies of it in workers cannot be asked.
        self.keeps_place = self.stateful and not self.indexed and not user.num_workers

    def _begin(self, skip: int, samples: int) -> None:
        stream = self.stream
        stream.epoch, stream.cycle = self.epoch, self.cycle
        stream.skip, stream.skip_samples = (0 if samples else skip, samples) if self.indexed else (0, 0)
        warm = self.persistent and (self._rewarm or self.view._iterator is not None)
        stream.rewarm, self._rewarm, self.fresh = self._rewarm, False, not warm
        self._ahead.clear()
        raw = iter(self.view)
        if self.indexed:
            stream.begin()
            skip = stream.skip
            self.taken = cast("Iterator[Any]", stream.taken) if self.ordered else None
            if self.taken is not None and not skip and not self.view.num_workers:
                # The sampler draws its seed now, as the workers' index prefetch would make it do.
                first = next(self.taken, END)
                self.taken = iter(()) if first is END else chain((first,), self.taken)
        stream.taken = None
        self._skip, self.batches = skip, -(-skip // self.shards)
        if skip and not self.indexed and not self.keeps_place:
            fix = "Give the dataset state_dict() and load_state_dict(), with num_workers=0"
            fast_forward(raw, skip, f"DataLoader({type(self.user.dataset).__name__})", fix)
        self._give(raw)

    @property
    def keeper(self) -> Any:
        """Return what keeps its own place, where something does."""
        return self.user.dataset

    def consumed(self) -> int:
        """Return how many of the user's own batches, over all ranks, the pass has used up."""
        used = super().consumed()
        return int(min(used, length(self.stream.inner))) if self.cut > 1 and self.exact else used

    def rest(self) -> int | float:
        """Return how many batches of the pass are left for this rank, from where it began."""
        whole = length(self.stream.inner)
        if not self.indexed or whole == _INF:
            return super().rest()
        return share_count(int(whole) - self._skip, self.shards, self.stream.short)

    def state(self) -> dict[str, Any]:
        """Return the place in the pass, with what the workers and the dataset add to it."""
        return {
            **super().state(),
            "place_in_samples": self.samples if self.indexed and self.ordered else None,
            "seed": self.stream.seed,
            "world": self.shards,
            "prefetch": self.prefetch,
            "fresh": self.fresh,
            "warm": self.persistent and self.view._iterator is not None,
            "dataset": state_of(self.user.dataset) if self.indexed and self.stateful else None,
            "place": state_of(self.user.dataset) if self.keeps_place else None,
            "batch_size": self.user.batch_size,
        }

    def state_at(self, batches: int) -> dict[str, Any] | None:
        """Return an earlier place, which an iterable dataset that keeps its own has not."""
        return None if self.keeps_place else super().state_at(batches)

    def load(self, state: dict[str, Any]) -> None:
        """Take over generators, the dataset's own state, and whether workers were up."""
        self.close()
        super().load(state)
        self._rewarm = self.persistent and state.get("warm", False)
        self.stream.seed = state.get("seed", self.stream.seed)
        kept = state.get("dataset") if self.indexed else state.get("place")
        if kept is not None and (self.stateful if self.indexed else self.keeps_place):
            self._load_kept(kept, state)

    def resume(self, state: dict[str, Any], epoch: int) -> None:
        """Begin the saved pass once more, skip its indices, load no data."""
        if not state.get("ended"):
            self._rewarm = self.persistent and not state.get("fresh", True)
        size, before = self.user.batch_size, state.get("batch_size")
        if not self.indexed and size and before and size != before:
            state = {**state, "batches": self._whole_batches(state["batches"], before, size)}
        super().resume(state, epoch)

    def _whole_batches(self, batches: int, before: int, size: int) -> int:
        """Return how many batches of another size hold what so many batches of an iterable dataset held.

        Args:
            batches: How many were used up.
            before: Samples of each of them.
            size: Samples of a batch now.

        Raises:
            CheckpointError: If no whole number does, for a worker each, and only that can be passed over.
        """
        found, workers = batches * before // size, max(self.user.num_workers, 1)
        old, new = ([-(-(n - i) // workers) for i in range(workers)] for n in (batches, found))
        if self.keeps_place or [n * before for n in old] == [n * size for n in new]:
            return found
        raise CheckpointError(
            f"DataLoader({type(self.user.dataset).__name__}): a resume finds the place in an iterable dataset by "
            f"passing over whole batches. Got batch_size={size} for {batches} batches of {before}. Use "
            f"batch_size={before}, or give the dataset state_dict() and load_state_dict(), with num_workers=0."
        )

    def _settle(self, state: dict[str, Any]) -> None:
        """Set generators as saved; where prefetching changed, those that indices come from stay as replayed."""
        if state.get("replayed"):
            return
        same = state.get("prefetch") == self.prefetch and state.get("world") == self.shards
        for generator, start, now in zip(self.generators, state["start"], state["now"], strict=True):
            if same or _equal(rng.generator_state(generator), start):
                rng.set_generator_state(generator, now)

    def close(self) -> None:
        """Shut down every worker, persistent ones too."""
        super().close()
        shut_down(self.view._iterator)
        self.view.__dict__["_iterator"] = None


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return all(_equal(a[key], b.get(key)) for key in a)
    return bool((a == b).all()) if hasattr(a, "all") else bool(a == b)


def _view(user: DataLoader[Any], stream: IndexStream) -> Any:
    """Return a shallow copy of a loader that draws its indices from ``stream``."""
    view = copy.copy(user)
    name = "batch_sampler" if user.batch_sampler is not None else "sampler"
    view.__dict__.update({name: stream, "_iterator": None, "_IterableDataset_len_called": None})
    return view


def _in_order(user: DataLoader[Any]) -> Any:
    """Return the loader's (batch) sampler with a shuffling sampler in it replaced by a sequential one."""
    inner: Any = user._index_sampler
    sampler = user.sampler if user.batch_sampler is None else getattr(inner, "sampler", None)
    if isinstance(sampler, SequentialSampler):
        return inner
    warn(
        f"overfit_batches takes the first batches of a fixed order: {type(sampler or inner).__name__} "
        "is replaced by a sequential sampler for this run."
    )
    ordered = SequentialSampler(user.dataset)  # type: ignore[arg-type]
    if user.batch_sampler is None:
        return ordered
    size = getattr(inner, "batch_size", None) or user.batch_size or 1
    return BatchSampler(ordered, int(size), bool(getattr(inner, "drop_last", False)))


def _is_plain_loader(user: Any) -> bool:
    """Return whether iterating the loader is torch's own: then a view of it does the same."""
    kind = type(user)
    return (
        isinstance(user, DataLoader)
        and kind.__iter__ is DataLoader.__iter__
        and kind._get_iterator is DataLoader._get_iterator
        and not is_stateful(user)
    )


def make_leaf(user: Any, number: int, *, world: World, seed: int, train: bool, sequential: bool) -> Leaf:
    """Return the leaf that fits what the user gave.

    Args:
        user: A DataLoader, a list or tuple of batches, another iterable, or a function that makes one.
        number: Its number among the loaders of the stage.
        world: Who this rank is; only map-style DataLoaders are shared among ranks.
        seed: The run's seed, for the workers.
        train: Whether every rank must take equally many steps.
        sequential: Whether shuffling samplers give way to sequential ones.
    """
    if type(user) in (list, tuple):
        return SequenceLeaf(user, number)
    if _is_plain_loader(user):
        return ViewLeaf(user, number, world=world, seed=seed, train=train, sequential=sequential)
    mapped = isinstance(user, DataLoader) and not isinstance(user.dataset, IterableDataset)
    if mapped and world.data_size > 1 and not is_sharded(user.sampler, user.batch_sampler):
        workers = user.num_workers
        stream = IndexStream(user._index_sampler, workers=workers, world=world, seed=seed, loader=number)
        leaf = OpaqueLeaf(user, number, _view(user, stream))
        leaf.even = True
        return leaf
    return OpaqueLeaf(user, number)
