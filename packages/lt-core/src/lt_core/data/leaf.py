"""Open, count, save and resume one loader: a leaf of what the user gave."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import chain, islice
from typing import Any

from torch.utils.data import DataLoader

from lt_core.data.dealing import END, Dealer
from lt_core.data.nested import digest
from lt_core.data.stream import Share, samplers_in
from lt_core.state import rng

__all__ = ["END", "Leaf", "Moment", "SequenceLeaf", "count", "is_stateful", "length"]
__all__ += ["ends_with", "note_ends", "noted_anew", "shut_down", "state_of"]

_INF = float("inf")
Moment = tuple[int, int, list[Any]]  # batches, samples, states of generators


def is_stateful(thing: Any) -> bool:
    """Return whether an object saves and loads its own state."""
    return callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))


def state_of(thing: Any) -> Any:
    """Return a copy of an object's own state; what cannot be copied as it is, for the checkpoint's format to refuse."""
    state = thing.state_dict()
    try:
        return copy.deepcopy(state)
    except Exception:  # whatever an object's own methods raise
        return state


def length(thing: Any) -> int | float:
    """Return ``len(thing)``, infinity where it has none."""
    try:
        return len(thing)
    except (TypeError, NotImplementedError, AttributeError):
        return _INF


class Leaf:
    """One loader's batches, and the place in them.

    Attributes:
        user: The loader as the user gave it.
        number: Its number among the loaders of its stage.
        whole: Batches that the loader gives this rank in a whole pass; infinity where unknown.
        exact: Whether ``size`` is where a pass really ends, and not just what the user's object says.
        indexed: Whether ``taken`` yields the index batch of each batch.
        batches: Batches of the running pass handed out so far, those before a resume included.
        samples: Samples in them, over all ranks, as far as they are known without looking at data.
        cycle: Passes of the running epoch that were completed.
        iterator: What yields the batches of the running pass.
        taken: What yields their index batches, or None.
        indices: Index batch of the batch handed out last, or None.
        weight: Factor of this rank's mean in the mean over ranks: 1 unless a global batch was short.
        peek_draws: Whether fetching a batch may draw from this process's random generators.
        early: Whether a batch may be fetched in front of the step before its own and nobody can see it: this process
            draws nothing for it, and the place before it is cheap to note.
        kept_as: What the state calls the place that the user's own iterable keeps.
        keeps_place: Whether the place is kept by the user's own iterable, which nothing is replayed of.
        done: Whether the pass was found to have ended.
        one_shot: Whether the user's iterable can be used once, so that it stands where it was left.
        even: Whether all ranks take equally many batches, since they share one stream of indices.
        cut: Data ranks that the loader's index batches are shared among.
        dealer: Deals batches without indices among several ranks; None for one rank, and where there are indices.
        generators: Random generators that the loader, its samplers and its dataset own.
        sampling: Those of them that the order of samples comes from.
        agreed: Makes the context in which a pass begins: under rank 0's random state, with several ranks.
        limit: Batches after which a pass ends at the latest.
        start: The process's random state right before the running pass began.
    """

    indexed = False
    kept_as = "place"
    exact = True
    snapshots = True
    peek_draws = True
    early = keeps_place = even = one_shot = done = False
    cut = 1
    weight = 1.0
    dealer: Dealer | None = None

    def __init__(self, user: Any, number: int, sized: Any) -> None:
        self.user, self.number, self._sized = user, number, sized
        self.measure()
        self.batches = self.samples = self.cycle = self.epoch = 0
        self.iterator: Iterator[Any] = iter(())
        self._raw: Iterator[Any] = self.iterator
        self._begins, self._skip = False, 0
        self.taken: Iterator[Any] | None = None
        self.generators: list[Any] = []
        self.sampling: list[Any] = []
        self.agreed: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.limit: int | float = _INF
        self.indices: Any = None
        self._ahead: list[Any] = []
        self._anew: bool | None = None
        self._at_end: Any = None
        self.start: dict[str, Any] | None = None
        self._start_generators: list[Any] = []

    def measure(self) -> None:
        """Ask how many batches a whole pass has: it may differ from epoch to epoch."""
        self.whole = length(self._sized)

    @property
    def keeper(self) -> Any:
        """Return what keeps its own place, where something does."""
        return self.user

    @property
    def size(self) -> int | float:
        """Return how many batches this rank takes in a whole pass; infinity where unknown."""
        return self.whole if self.dealer is None else self.dealer.share(self.whole)

    @property
    def shards(self) -> int:
        """Return how many data ranks the loader's batches are shared among."""
        return self.cut if self.dealer is None else self.dealer.shards

    def open(self, epoch: int, cycle: int = 0) -> None:
        """Begin a pass: snapshot the random state, then make the iterator and draw the first indices.

        Of what is dealt among ranks, the first batch is drawn too: an order that a generator draws when it begins is
        drawn from the state that the ranks agreed on.
        """
        self.epoch, self.cycle, self.batches, self.samples, self.weight = epoch, cycle, 0, 0, 1.0
        self._begins, self._skip, self.done = not cycle, 0, False
        with self.agreed():
            if self.snapshots:
                self.start = rng.capture()
                self._start_generators = [rng.generator_state(g) for g in self.generators]
            self._begin(0, 0)
            if self.dealer is not None:
                first = next(self.iterator, END)
                self.iterator = iter(()) if first is END else chain((first,), self.iterator)

    def _give(self, raw: Iterator[Any]) -> None:
        """Set the pass's iterator: the one given, or this rank's share of its batches."""
        self._raw = raw
        self.iterator = raw if self.dealer is None else self.dealer.deal(raw, self._begins)

    def foresee(self) -> None:
        """Find out, before the first pass, whether a loader of known length is dealt; nobody sees the batch drawn."""
        dealer, source = self.dealer, self.user
        if dealer is None or dealer.dealt is not None or self.whole == _INF or self.one_shot:
            return
        with rng.isolate(), self.agreed():
            states = [rng.generator_state(g) for g in self.generators]
            if isinstance(source, DataLoader):
                source, dataset = copy.copy(source), copy.copy(source.dataset)
                source.__dict__.update(dataset=dataset, num_workers=0, _iterator=None, persistent_workers=False)
            first = next(iter(source), END)
            self._set_generators(states)
        dealer.foresee(first)

    def begins_anew(self) -> bool:
        """Return whether a new iteration of what keeps its own place begins anew, though one after a load goes on.

        Found out once, on copies that each give a sample; what cannot be copied goes on where its state is. Before
        the first batch there is no difference to see.
        """
        if self._anew is None and self.batches:
            self._anew = False
            with suppress(Exception):
                fresh, loaded = copy.deepcopy(_bare(self.keeper)), copy.deepcopy(_bare(self.keeper))
                loaded.load_state_dict(copy.deepcopy(self.keeper.state_dict()))
                self._anew = digest(_first_of(fresh)) != digest(_first_of(loaded))
        return bool(self._anew)

    def ending(self) -> dict[str, Any]:
        """Return what a saved place must say of a pass that has no further batch: the state at its very end.

        Just behind the last batch, what keeps its own place may stand at its end or at its beginning already.
        """
        return {"ended": True, "anew": self.begins_anew(), self.kept_as: self._at_end}

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
        try:
            batch = next(self.iterator)
        except StopIteration:
            self.done = True
            self._at_end = state_of(self.keeper) if self.keeps_place else None
            raise
        self.batches += 1
        if self.taken is not None:
            one = self._ahead.pop() if self._ahead else next(self.taken)
            if isinstance(one, Share):
                self.weight = one.own * self.shards / one.total
                self.indices = one.indices
                self.samples += one.total
            else:
                self.indices = one
                self.samples += count(one)
        elif self.dealer is not None and self.dealer.weights:
            self.weight, samples = self.dealer.weights.popleft()
            self.samples += samples
        return batch

    def ended(self) -> bool | None:
        """Return whether the pass has no further batch, or None where only data could show it.

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

    def matches(self, state: dict[str, Any]) -> bool:
        """Return whether a place that another leaf was left at can be found in this one."""
        return not self.one_shot and (not self.exact or self.size == state["size"])

    def consumed(self) -> int:
        """Return how many of the user's own batches, over all ranks, the pass has used up."""
        return self._skip + (self.batches - -(-self._skip // self.shards)) * self.shards

    def rest(self) -> int | float:
        """Return how many batches of the pass are left for this rank, from where it began."""
        return self.size - self.batches

    def state(self) -> dict[str, Any]:
        """Return the place in the running pass and all that a resume needs to find it again."""
        dealt = {} if self.dealer is None else {"dealt": self.dealer.dealt}
        return {
            **dealt,
            "cycle": self.cycle,
            "ended": self.done,
            "batches": self.consumed(),
            "samples": self.samples,
            "size": self.size,
            "rng": self.start,
            "start": self._start_generators,
            "now": [rng.generator_state(g) for g in self.generators],
        }

    def moment(self) -> Moment:
        """Return what the next fetch changes of `state`, for `at`: cheap, since it is asked for with each batch."""
        return self.batches, self.samples, [rng.generator_state(g) for g in self.generators]

    @contextmanager
    def at(self, moment: Moment) -> Iterator[None]:
        """Return a context in which `state` is that of an earlier moment."""
        now = self.moment()
        try:
            self._go(moment)
            yield
        finally:
            self._go(now)

    def _go(self, moment: Moment) -> None:
        self.batches, self.samples, generators = moment
        self._set_generators(generators)

    def state_at(self, batches: int) -> dict[str, Any] | None:
        """Return the place behind an earlier batch of the running pass, or None where it cannot be found again.

        Args:
            batches: How many of this rank's batches come before it.
        """
        if batches < 0:
            return None
        rounds = -(-self._skip // self.shards)  # of this rank, before the pass was begun anew
        used = batches * self.shards if batches < rounds else self._skip + (batches - rounds) * self.shards
        size = getattr(self.user, "batch_size", None)
        samples = used * size if size else self.samples * used // max(self.consumed(), 1)
        if not size and self.indices is not None and self.shards == 1 and batches == self.batches - 1:
            samples = self.samples - count(self.indices)
        whole = {"place_in_samples": samples if size and self.indexed else None}
        return {**self.state(), **whole, "batches": used, "samples": min(samples, self.samples), "replayed": True}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what outlives an epoch: the state of the loader's own generators, and how it is dealt."""
        if self.dealer is not None:
            self.dealer.resume(state.get("dealt"))
        if len(state["now"]) == len(self.generators):
            self._set_generators(state["now"])

    def _load_kept(self, kept: Any, state: dict[str, Any]) -> None:
        """Give what keeps its own place its state; drop an iteration there if the next epoch's begins anew."""
        self.keeper.load_state_dict(kept)
        if state.get("anew"):
            _first_of(self.keeper)
            Leaf.load(self, state)  # its generators' states

    def resume(self, state: dict[str, Any], epoch: int) -> None:
        """Begin the pass that ``state`` names once more and go to its place in it.

        The process's random state is left where beginning and skipping took it.
        """
        self.epoch, self.cycle, self.samples, self._begins = epoch, state["cycle"], state["samples"], True
        self._skip, self.batches = state["batches"], -(-state["batches"] // self.shards)
        self.start, self._start_generators = state["rng"], state["start"]
        matched = len(self.generators) == len(state["start"])
        if self.start is not None:
            rng.restore(self.start)
        if matched:
            self._set_generators(state["start"])
        self.done = state.get("ended", False)
        if not self.done:  # else samplers would draw, and what keeps its own place begin another pass, once more
            self._begin(state["batches"], state.get("place_in_samples") or 0)
        if matched:
            self._settle(state)

    def _settle(self, state: dict[str, Any]) -> None:
        """Give the loader's own generators the state that they had when the place was saved."""
        if not state.get("replayed"):
            self._set_generators(state["now"])

    def _set_generators(self, states: list[Any]) -> None:
        for generator, state in zip(self.generators, states, strict=True):
            rng.set_generator_state(generator, state)

    def _begin(self, skip: int, samples: int) -> None:
        """Make the iterator of a pass, ``samples`` in, or ``skip`` of the user's batches where that is 0."""
        raise NotImplementedError

    def release(self) -> None:
        """Let go of the pass's iterator, with the workers that serve this pass alone."""
        if not getattr(self._raw, "_persistent_workers", True):
            shut_down(self._raw)  # here and now: an error's traceback may hold the iterator for long
        self.iterator, self.taken = iter(()), None
        self._raw = self.iterator
        self._ahead.clear()

    def close(self) -> None:
        """Shut down every worker."""
        raw = self._raw
        self.release()
        shut_down(raw)

    def set_epoch(self, epoch: int) -> None:
        """Give samplers and datasets the epoch's number, each of them once."""
        sampler, batch_sampler, dataset = (getattr(self.user, n, None) for n in ("sampler", "batch_sampler", "dataset"))
        parts = [self.user, sampler, batch_sampler, *samplers_in(sampler, batch_sampler), dataset]
        for part in {id(part): part for part in parts}.values():
            set_epoch = getattr(part, "set_epoch", None)
            if callable(set_epoch):
                set_epoch(epoch)


def ends_with(leaves: list[Leaf], mode: str) -> Leaf | None:
    """Return which of several loaders the running epoch ends with, None where the first passes of all are over.

    Args:
        leaves: The loaders, walked side by side.
        mode: In which of the modes.
    """
    by_end = min if mode == "min_size" else max
    return by_end((x for x in leaves if not x.cycle), key=lambda leaf: leaf.batches + leaf.rest(), default=None)


def noted_anew(leaves: list[Leaf], place: dict[str, Any]) -> dict[str, Any]:
    """Note in a place behind an epoch what begins anew with the next one, wherever its state stands; return it.

    Args:
        leaves: The loaders.
        place: The place in them.
    """
    for leaf, one in zip(leaves, place["leaves"], strict=True):
        if leaf.keeps_place:
            one["anew"] = leaf.begins_anew()
    return place


def note_ends(leaves: list[Leaf], place: dict[str, Any]) -> None:
    """Note in a place which passes have come to their end since, or to the next one.

    Args:
        leaves: The loaders.
        place: The place in them.
    """
    for leaf, one in zip(leaves, place["leaves"], strict=True):
        if leaf.keeps_place and (leaf.done or leaf.cycle > one["cycle"]):
            one.update(leaf.ending())


def _first_of(source: Any) -> tuple[Any, ...]:
    """Begin an iteration and drop it, the random state untouched; return its first item, if there is one."""
    with rng.isolate():
        iterator = iter(source)
        found = tuple(islice(iterator, 1))
        shut_down(iterator)
    return found


def _bare(thing: Any) -> Any:
    """Return a shallow copy without the iterator that a loader keeps, which cannot be copied."""
    bare = copy.copy(thing)
    if "_iterator" in vars(bare):
        vars(bare)["_iterator"] = None
    return bare


def count(indices: Any) -> int:
    """Return how many samples an index batch (or one index) names."""
    return len(indices) if hasattr(indices, "__len__") else 1


def shut_down(iterator: Any) -> None:
    """End the workers of a DataLoader's iterator."""
    stop = getattr(iterator, "_shutdown_workers", None)
    if callable(stop):
        stop()


class SequenceLeaf(Leaf):
    """A list or tuple of batches: skipping is free and nothing random happens."""

    snapshots = peek_draws = False
    early = True

    def __init__(self, user: Any, number: int) -> None:
        super().__init__(user, number, user)

    def _begin(self, skip: int, samples: int) -> None:
        self._give(islice(self.user, skip, None) if skip else iter(self.user))
