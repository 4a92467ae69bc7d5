"""Open, count, save and resume one loader: a leaf of what the user gave.

A DataLoader is never made anew: a shallow copy of it, the *view*, gets an ``IndexStream`` in the place
of its batch sampler. One view serves the whole run, so that persistent workers persist.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, cast

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, SequentialSampler

from lt_core.data.stream import IndexStream, Share, Short, find_generators, share_count
from lt_core.notices import info, warn
from lt_core.state import rng
from lt_interface import World

__all__ = ["END", "Leaf", "OpaqueLeaf", "SequenceLeaf", "ViewLeaf", "make_leaf"]

END: Any = object()
_INF = float("inf")


def _is_stateful(thing: Any) -> bool:
    return callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))


def _length(thing: Any) -> int | float:
    try:
        return len(thing)
    except (TypeError, NotImplementedError, AttributeError):
        return _INF


class Leaf:
    """Give the batches of one loader, and know the place in it.

    Attributes:
        user: The loader as the user gave it.
        number: Its number among the loaders of its stage.
        size: Batches that this rank takes in a whole pass; infinity where unknown.
        exact: Whether ``size`` is where a pass really ends.
        indexed: Whether ``taken`` yields the index batch of each batch.
        batches: Batches of the running pass handed out so far, those before a resume included.
        samples: Samples in them, as far as they are known without looking at data.
        cycle: Passes of the running epoch that were completed.
        iterator: What yields the batches of the running pass.
        taken: What yields their index batches, or None.
        indices: Index batch of the batch handed out last, or None.
        weight: Factor of this rank's mean in the mean over ranks: 1 unless a global batch was short.
        shards: Data ranks that the loader's batches are shared among.
        generators: Random generators that the loader, its samplers and its dataset own.
        limit: Batches after which a pass ends at the latest.
        start: The process's random state right before the running pass began.
    """

    indexed = False
    exact = True
    snapshots = True
    shards = 1
    weight = 1.0

    def __init__(self, user: Any, number: int, size: int | float) -> None:
        self.user, self.number, self.size = user, number, size
        self.batches = self.samples = self.cycle = self.epoch = 0
        self.iterator: Iterator[Any] = iter(())
        self.taken: Iterator[Any] | None = None
        self.generators: list[Any] = []
        self.limit: int | float = _INF
        self.indices: Any = None
        self._ahead: list[Any] = []
        self.start: dict[str, Any] | None = None
        self._start_generators: list[Any] = []

    @property
    def peek_draws(self) -> bool:
        """Return whether fetching a batch may draw from this process's random generators."""
        return True

    @property
    def keeps_place(self) -> bool:
        """Return whether the place is kept by the user's own iterable, which nothing is replayed of."""
        return False

    def open(self, epoch: int, cycle: int = 0) -> None:
        """Begin a pass: snapshot the random state, then make the iterator and draw the first indices."""
        self.epoch, self.cycle, self.batches, self.samples = epoch, cycle, 0, 0
        if self.snapshots:
            self.start = rng.capture()
            self._start_generators = [rng.generator_state(g) for g in self.generators]
        self._begin(0)

    def restart(self) -> None:
        """Begin another pass within the epoch."""
        self.open(self.epoch, self.cycle + 1)

    def take(self) -> Any:
        """Return the next batch and count it.

        Raises:
            StopIteration: If the pass has ended.
        """
        if self.batches >= self.limit:
            raise StopIteration
        batch = next(self.iterator)
        self.batches += 1
        if self.taken is not None:
            one = self._ahead.pop() if self._ahead else next(self.taken)
            if isinstance(one, Share):
                self.weight = one.own * self.shards / one.total
                one = one.indices
            self.indices = one
            self.samples += count(one)
        return batch

    def ended(self) -> bool | None:
        """Return whether the pass has no further batch, or None where only data could tell.

        Where a batch sampler has no length, its next indices are drawn; never data.
        """
        if self.batches >= self.limit:
            return True
        if self.exact and self.size != _INF:
            return self.batches >= self.size
        if self.taken is None:
            return None
        if not self._ahead:
            one = next(self.taken, END)
            if one is END:
                return True
            self._ahead.append(one)
        return False

    def consumed(self) -> int:
        """Return how many of the user's own batches, over all ranks, the pass has used up."""
        return self.batches

    def state(self) -> dict[str, Any]:
        """Return the place in the running pass and all that a resume needs to find it again."""
        return {
            "cycle": self.cycle,
            "batches": self.consumed(),
            "samples": self.samples,
            "size": self.size,
            "rng": self.start,
            "start": self._start_generators,
            "now": [rng.generator_state(g) for g in self.generators],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what outlives an epoch: the state of the loader's own generators."""
        if len(state["now"]) == len(self.generators):
            for generator, now in zip(self.generators, state["now"], strict=True):
                rng.set_generator_state(generator, now)

    def resume(self, state: dict[str, Any], epoch: int) -> None:
        """Begin the pass that ``state`` names once more and go to its place in it.

        The process's random state is left where beginning and skipping took it.
        """
        self.epoch, self.cycle, self.samples = epoch, state["cycle"], state["samples"]
        self.batches = state["batches"]
        self.start, self._start_generators = state["rng"], state["start"]
        matched = len(self.generators) == len(state["start"])
        if self.start is not None:
            rng.restore(self.start)
        if matched:
            for generator, start in zip(self.generators, state["start"], strict=True):
                rng.set_generator_state(generator, start)
        self._begin(state["batches"])
        if matched:
            self._settle(state)

    def _settle(self, state: dict[str, Any]) -> None:
        """Give the loader's own generators the state that they had when the place was saved."""
        for generator, now in zip(self.generators, state["now"], strict=True):
            rng.set_generator_state(generator, now)

    def _begin(self, skip: int) -> None:
        """Make the iterator of a pass, ``skip`` of the user's batches in."""
        raise NotImplementedError

    def release(self) -> None:
        """Let go of the pass's iterator, with the workers that serve this pass alone."""
        if not getattr(self.iterator, "_persistent_workers", True):
            _shut_down(self.iterator)  # here and now: an error's traceback may hold the iterator for long
        self.iterator, self.taken = iter(()), None
        self._ahead.clear()

    def close(self) -> None:
        """Shut down every worker."""
        iterator = self.iterator
        self.release()
        _shut_down(iterator)

    def set_epoch(self, epoch: int) -> None:
        """Tell samplers and datasets the epoch's number."""
        loader = self.user
        batch_sampler = getattr(loader, "batch_sampler", None)
        told = set[int]()
        for part in (
            loader,
            getattr(loader, "sampler", None),
            batch_sampler,
            getattr(batch_sampler, "sampler", None),
            getattr(loader, "dataset", None),
        ):
            tell = getattr(part, "set_epoch", None)
            if callable(tell) and id(part) not in told:
                told.add(id(part))
                tell(epoch)


def count(indices: Any) -> int:
    """Return how many samples an index batch (or one index) names."""
    return len(indices) if type(indices) is list else len(indices) if hasattr(indices, "__len__") else 1


def _shut_down(iterator: Any) -> None:
    stop = getattr(iterator, "_shutdown_workers", None)
    if callable(stop):
        stop()


class SequenceLeaf(Leaf):
    """Serve a list or tuple of batches: skipping is free and nothing random happens."""

    snapshots = False

    def __init__(self, user: Any, number: int) -> None:
        super().__init__(user, number, len(user))

    @property
    def peek_draws(self) -> bool:
        """Return False: the batches exist already."""
        return False

    def _begin(self, skip: int) -> None:
        self.iterator = islice(self.user, skip, None) if skip else iter(self.user)


class OpaqueLeaf(Leaf):
    """Serve an iterable of which nothing is known but how to iterate it.

    A place in it is found again by its own ``state_dict`` if it has one, else by drawing and dropping
    batches, with a warning that says how many.
    """

    def __init__(self, user: Any, number: int, source: Any = None) -> None:
        self.source = user if source is None else source
        super().__init__(user, number, _length(self.source))
        self.stateful = _is_stateful(user)
        self.one_shot = hasattr(self.source, "__next__")
        self.drawn = 0
        self.generators = find_generators(user) if isinstance(user, DataLoader) else []

    @property
    def peek_draws(self) -> bool:
        """Return whether no worker processes stand between the data and this process."""
        return not getattr(self.user, "num_workers", 0)

    def open(self, epoch: int, cycle: int = 0) -> None:
        """Begin a pass; an iterator that can be used once goes on where it stands."""
        self.drawn += self.batches if self.one_shot else 0
        super().open(epoch, cycle)

    def state(self) -> dict[str, Any]:
        """Return the place, and the loader's own state if it keeps one."""
        return {
            **super().state(),
            "drawn": self.drawn,
            "user": copy.deepcopy(self.user.state_dict()) if self.stateful else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over the loader's own state."""
        super().load(state)
        if self.one_shot and not self.stateful:
            self._forward(iter(self.source), state.get("drawn", 0) + state["batches"])
            self.drawn = state.get("drawn", 0)
            self.batches = state["batches"]
        if self.stateful and state.get("user") is not None:
            self.user.load_state_dict(state["user"])

    def _begin(self, skip: int) -> None:
        made = self.source if hasattr(self.source, "__iter__") else self.source()
        self.iterator = iter(made)
        if skip and not self.stateful and not self.one_shot:
            self._forward(self.iterator, skip)

    def _forward(self, iterator: Iterator[Any], skip: int) -> None:
        _fast_forward(iterator, skip, type(self.user).__name__, "Give it state_dict() and load_state_dict()")


def _fast_forward(iterator: Iterator[Any], skip: int, name: str, fix: str) -> None:
    """Draw and drop batches, and say so."""
    if not skip:
        return
    warn(
        f"Resuming inside an epoch: {name} can not be told its place, so its first {skip} batches are loaded once "
        f"more and dropped, which takes as long as loading them took. {fix}, and a resume is immediate."
    )
    for done in range(skip):
        if next(iterator, END) is END:
            warn(f"Resuming inside an epoch: {name} ended after {done} of the {skip} batches to pass over.")
            return
    info(f"Passed over {skip} batches of {name}")


class ViewLeaf(Leaf):
    """Serve a torch DataLoader through a view of it, over a map-style or an iterable dataset."""

    def __init__(
        self,
        user: DataLoader[Any],
        number: int,
        *,
        world: World,
        seed: int,
        short: Short = "split",
        spare: bool = True,
        sequential: bool = False,
    ) -> None:
        self.indexed = not isinstance(user.dataset, IterableDataset)
        sharded = self.indexed and not isinstance(user.sampler, DistributedSampler)
        self.shards = world.data_size if sharded else 1
        self.stream = IndexStream(
            _in_order(user) if sequential and self.indexed else user._index_sampler,
            workers=user.num_workers,
            rank=world.data_rank if sharded else 0,
            size=self.shards,
            short=short,
            spare=spare,
            seed=seed,
            loader=number,
            generator=user.generator,
        )
        self.view = _view(user, self.stream)
        super().__init__(user, number, _length(self.stream) if self.indexed else _length(user))
        self.exact = self.indexed or user.num_workers < 2
        self.generators = find_generators(self.view, self.stream.inner)
        self.stateful = _is_stateful(user.dataset)
        self.persistent = bool(user.persistent_workers and user.num_workers)
        self.prefetch = (user.prefetch_factor or 0) * user.num_workers
        # Batches that overtake one another can not be told their indices.
        self.ordered = getattr(user, "in_order", True) or user.num_workers < 2
        self.fresh, self._rewarm, self._skip = True, False, 0

    @property
    def peek_draws(self) -> bool:
        """Return whether the dataset runs in this process."""
        return bool(self.view.num_workers == 0)

    def _begin(self, skip: int) -> None:
        stream = self.stream
        replays = self.indexed and bool(skip)
        stream.epoch, stream.cycle, stream.skip = self.epoch, self.cycle, skip if replays else 0
        self._skip = stream.skip
        warm = self.persistent and (self._rewarm or self.view._iterator is not None)
        stream.rewarm, self._rewarm, self.fresh = self._rewarm, False, not warm
        self.batches = -(-skip // self.shards)
        self._ahead.clear()
        self.iterator = iter(self.view)
        if self.indexed:
            stream.begin()
            self.taken = cast("Iterator[Any]", stream.taken) if self.ordered else None
            if self.taken is not None and not skip and not self.view.num_workers:
                # The sampler draws its seed now, as the workers' index prefetch would make it do.
                first = next(self.taken, END)
                self.taken = iter(()) if first is END else chain((first,), self.taken)
        stream.taken = None
        if skip and not self.indexed and not self.keeps_place:
            fix = "Give the dataset state_dict() and load_state_dict(), with num_workers=0"
            _fast_forward(self.iterator, skip, f"DataLoader({type(self.user.dataset).__name__})", fix)

    @property
    def keeps_place(self) -> bool:
        """Return whether an iterable dataset keeps its own place; copies in workers can not be asked."""
        return self.stateful and not self.indexed and not self.view.num_workers

    def consumed(self) -> int:
        """Return how many of the user's own batches, over all ranks, the pass has used up."""
        if self.shards == 1:
            return self.batches
        used = self._skip + (self.batches - -(-self._skip // self.shards)) * self.shards
        return int(min(used, _length(self.stream.inner)))

    def rest(self) -> int | float:
        """Return how many batches of the pass are left for this rank, from where it began."""
        whole = _length(self.stream.inner)
        if not self.indexed or whole == _INF:
            return self.size - self.batches
        return share_count(int(whole) - self._skip, self.shards, self.stream.short)

    def state(self) -> dict[str, Any]:
        """Return the place in the pass, with what the workers and the dataset add to it."""
        return {
            **super().state(),
            "seed": self.stream.seed,
            "world": self.shards,
            "prefetch": self.prefetch,
            "fresh": self.fresh,
            "warm": self.persistent and self.view._iterator is not None,
            "dataset": copy.deepcopy(self.user.dataset.state_dict()) if self.indexed and self.stateful else None,
            "place": copy.deepcopy(self.user.dataset.state_dict()) if self.keeps_place else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over generators, the dataset's own state, and whether workers were up."""
        self.close()
        super().load(state)
        self._rewarm = self.persistent and state.get("warm", False)
        self.stream.seed = state.get("seed", self.stream.seed)
        kept = state.get("dataset") if self.indexed else state.get("place")
        if kept is not None and (self.stateful if self.indexed else self.keeps_place):
            self.user.dataset.load_state_dict(kept)

    def resume(self, state: dict[str, Any], epoch: int) -> None:
        """Begin the saved pass once more, skip its indices, load no data."""
        self._rewarm = self.persistent and not state.get("fresh", True)
        super().resume(state, epoch)

    def _settle(self, state: dict[str, Any]) -> None:
        """Set generators as saved; where prefetching changed, those that indices come from stay as replayed."""
        same = state.get("prefetch") == self.prefetch and state.get("world") == self.shards
        for generator, start, now in zip(self.generators, state["start"], state["now"], strict=True):
            if same or _equal(rng.generator_state(generator), start):
                rng.set_generator_state(generator, now)

    def close(self) -> None:
        """Shut down every worker, persistent ones too."""
        super().close()
        _shut_down(self.view._iterator)
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
        and not _is_stateful(user)
    )


def make_leaf(user: Any, number: int, *, world: World, seed: int, train: bool, sequential: bool = False) -> Leaf:
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
        short: Short = "drop" if train and user.drop_last else "split"
        return ViewLeaf(user, number, world=world, seed=seed, short=short, spare=train, sequential=sequential)
    if isinstance(user, DataLoader) and not isinstance(user.dataset, IterableDataset) and world.data_size > 1:
        stream = IndexStream(
            user._index_sampler,
            workers=user.num_workers,
            rank=world.data_rank,
            size=world.data_size,
            spare=train,
            seed=seed,
            loader=number,
        )
        return OpaqueLeaf(user, number, _view(user, stream))
    return OpaqueLeaf(user, number)
