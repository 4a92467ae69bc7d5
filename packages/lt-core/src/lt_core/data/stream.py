"""Turn a loader's stream of index batches into this rank's share of it, seeded batch by batch.

One mechanism serves sampling, sharding and resuming: the stream of index batches that the user's own
batch sampler gives. Everything here handles indices only and never touches data.

Sharding, for ``size`` data ranks: ``size`` consecutive user batches form one global batch. In a whole
one, rank r takes the r-th user batch. What is left at the end is, by choice, split evenly, dropped, or
split after padding. So the concatenation of all shares, global batch by global batch and rank by rank,
is the user's own order, for every number of ranks.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain, islice, tee
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torch.utils.data._utils import worker

from lt_core.state.rng import generator_state, is_generator, reseed_generator, seed_process, set_generator_state
from lt_interface import World

__all__ = [
    "IndexStream",
    "Share",
    "batch_seed",
    "find_generators",
    "is_sharded",
    "samplers_in",
    "share_count",
    "shares",
]
__all__ += ["Short", "split"]

Short = Literal["split", "drop", "pad"]

_OWNERS = ("sampler", "batch_sampler", "dataset", "datasets", "transform", "transforms", "collate_fn")


class Share(NamedTuple):
    """What one rank takes of a global batch.

    Attributes:
        indices: The rank's index batch, as the dataset receives it.
        own: How many of its samples are the rank's own: not repeated from elsewhere.
        total: Samples of the whole global batch, over all ranks.
        position: The number of the user batch that stands here, from 0 at the epoch's start.
    """

    indices: Any
    own: int
    total: int
    position: int


def split(samples: Sequence[Any], rank: int, size: int) -> Sequence[Any]:
    """Return rank's contiguous part of ``samples``; parts differ in length by one at most."""
    whole, rest = divmod(len(samples), size)
    start = rank * whole + min(rank, rest)
    return samples[start : start + whole + (rank < rest)]


def _is_batch(indices: Any) -> bool:
    return isinstance(indices, list | tuple) or (hasattr(indices, "__len__") and not isinstance(indices, str | bytes))


def _length(indices: Any) -> int:
    return len(indices) if _is_batch(indices) else 1


def _remainder(group: list[Any], rank: int, size: int, short: Short, spare: bool, start: int) -> Iterator[Share]:
    """Yield the rank's share, if there is one, of a global batch of fewer than ``size`` user batches."""
    batched = _is_batch(group[0])
    samples = list(chain.from_iterable(group)) if batched else group
    total = len(samples)
    if short == "pad":
        # The samples that fill the last parts up repeat those of the same global batch, from its first.
        width = -(-total // size)
        mine = [samples[i % total] for i in range(rank * width, (rank + 1) * width)]
        count = max(0, min(width, total - rank * width))
    else:
        mine = list(split(samples, rank, size))
        count = len(mine)
        if not mine and not spare:
            return
        mine = mine or [samples[rank % total]]
    yield Share(mine if batched else mine[0], count, total, start + rank)


def shares(
    batches: Iterable[Any], rank: int, size: int, *, short: Short = "split", spare: bool = True, start: int = 0
) -> Iterator[Share]:
    """Yield one rank's share of every global batch of a stream of index batches.

    Args:
        batches: The user's index batches, in order.
        rank: This data rank.
        size: Number of data ranks.
        short: What becomes of a last global batch of fewer than ``size`` user batches: ``"split"`` over
            all ranks, ``"drop"``, or ``"pad"`` to equal parts with repeated samples.
        spare: Whether a rank for which no sample is left repeats one (``own`` is 0 then), so that
            every rank takes equally many steps; False leaves it out.
        start: The number of the stream's first user batch.
    """
    stream = iter(batches)
    while group := list(islice(stream, size)):
        if len(group) == size:
            yield Share(group[rank], _length(group[rank]), sum(map(_length, group)), start + rank)
        elif short != "drop":
            yield from _remainder(group, rank, size, short, spare, start)
        start += size


def share_count(batches: int, size: int, short: Short = "split") -> int:
    """Return how many shares a rank takes of ``batches`` user batches (the most that any rank takes)."""
    return batches // size if short == "drop" else -(-batches // size)


def batch_seed(seed: int, epoch: int, loader: int, cycle: int, position: int) -> int:
    """Return the 64-bit seed of one batch's augmentation: the same for any number of workers or ranks."""
    name = f"{seed}:{epoch}:{loader}:{cycle}:{position}".encode()
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little")


def find_generators(*roots: Any) -> list[Any]:
    """Find the random generators that loaders, samplers, datasets and their transforms own."""
    found: list[Any] = []
    queue, seen = list(roots), set[int]()
    while queue:
        owner = queue.pop(0)
        if id(owner) in seen or isinstance(owner, type | torch.Tensor):
            continue
        seen.add(id(owner))
        if is_generator(owner):
            found.append(owner)
        elif isinstance(owner, list | tuple):
            queue.extend(item for item in owner[:64] if hasattr(item, "__dict__"))
        else:
            for name, value in getattr(owner, "__dict__", {}).items():
                if name in _OWNERS or is_generator(value):
                    queue.append(value)
    return found


def samplers_in(*roots: Any) -> list[Any]:
    """Return these samplers, and whatever they iterate in turn, under any attribute's name."""
    found: list[Any] = []
    queue = list(roots)
    while queue:
        one = queue.pop(0)
        if type(one) in (list, tuple):
            queue.extend(one[:64])
        elif _gives_indices(one) and not any(one is other for other in found):
            found.append(one)
            queue.extend(vars(one).values())
    return found


def _gives_indices(thing: Any) -> bool:
    data = isinstance(thing, type | torch.Tensor | Dataset | DataLoader) or hasattr(thing, "__getitem__")
    return not data and hasattr(thing, "__iter__") and hasattr(thing, "__dict__")


def is_sharded(*samplers: Any) -> bool:
    """Return whether samplers, or others in them, give each rank its own share of the samples."""
    for one in samplers_in(*samplers):
        distributed = isinstance(one, DistributedSampler) or (hasattr(one, "num_replicas") and hasattr(one, "rank"))
        if distributed and getattr(one, "num_replicas", None) != 1:
            return True
    return False


_worker: dict[str, Any] = {}


def _arrive(index: Any, seed: int, epoch: int) -> Any:
    """Give a worker its index batch, its random state set for this batch alone.

    Runs where the worker unpickles the index, right before it fetches: after the user's
    worker_init_fn, with no wrapper around the user's dataset or collate function.
    """
    seed_process(seed)
    info = torch.utils.data.get_worker_info()
    if info is not None:
        if _worker.get("dataset") is not info.dataset:
            # Ctrl-C reaches workers too; they go on to serve until the main process, at its boundary, ends them.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            # A killed rank's workers look for it each second in place of five: the job is gone while its user watches.
            vars(worker).update(MP_STATUS_CHECK_INTERVAL=1.0)
            _worker.update(dataset=info.dataset, epoch=None, generators=find_generators(info.dataset))
        for number, generator in enumerate(_worker["generators"], 1):
            reseed_generator(generator, (seed + number) % 2**64)
        if _worker["epoch"] != epoch:
            # Persistent workers hold a copy of the dataset that set_epoch() in the main process does not reach.
            _worker["epoch"] = epoch
            set_epoch = getattr(info.dataset, "set_epoch", None)
            if callable(set_epoch):
                set_epoch(epoch)
    return index


class _Payload:
    """Index batch with its seed, on its way to a worker; what arrives there is the plain index batch."""

    __slots__ = ("epoch", "index", "seed")

    def __init__(self, index: Any, seed: int, epoch: int) -> None:
        self.index, self.seed, self.epoch = index, seed, epoch

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, int, int]]:
        return _arrive, (self.index, self.seed, self.epoch)


class IndexStream:
    """Stand-in for a loader's batch sampler that skips, shares and seeds the index batches which that gives.

    Without workers and ranks the indices pass through C code alone, so a batch costs nothing more.

    Args:
        inner: The user's batch sampler (or sampler, where batching is off).
        workers: Number of worker processes of the loader.
        world: The data ranks that share the batches, and which of them this is; None for one alone.
        short: See ``shares``.
        seed: The run's seed.
        loader: The number of the loader among those of its stage.
        generator: The loader's own generator, from which its workers' base seed is drawn; torch's if None.

    Attributes:
        skip: User batches to pass over at the beginning.
        skip_samples: Samples to pass over; where it is not 0, ``skip`` follows from it.
    """

    def __init__(
        self,
        inner: Any,
        *,
        workers: int = 0,
        world: World | None = None,
        short: Short = "split",
        seed: int = 0,
        loader: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.inner, self.workers, self.short = inner, workers, short
        self.rank, self.size = (0, 1) if world is None else (world.data_rank, world.data_size)
        self.seed, self.loader, self.generator = seed, loader, generator
        self.epoch = self.cycle = self.skip = self.skip_samples = 0
        self.rewarm, self._begun = False, True
        self.taken: Iterator[Any] | None = None
        self._raw: Iterator[Any] = iter(())
        self._rest: list[Any] = []
        self._base: Any = None

    def __getattr__(self, name: str) -> Any:
        """Answer for the sampler in whose place this stands."""
        if name == "inner" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return share_count(len(self.inner), self.size, self.short)

    def __iter__(self) -> Iterator[Any]:
        """Begin the stream; ``taken`` then yields, in step, what the loader was given.

        A loader with workers calls this twice: before and after it draws their base seed. Where the
        workers of the run that is resumed were already up, no base seed was drawn: ``rewarm`` undoes it.
        """
        if self.rewarm and self.workers:
            own = self.generator or torch.default_generator
            if self._base is None:
                self._base = generator_state(own)
                return iter(())
            set_generator_state(own, self._base)
            self.rewarm, self._base = False, None
        self._raw, self._rest, self._begun = iter(self.inner), [], False
        stream: Iterator[Any] = chain(self._rest, self._raw) if self.skip_samples else self._raw
        given, self.taken = tee(self._shared(stream) if self.size > 1 else stream)
        if self.workers:
            return self._payloads(given)
        return given if self.size == 1 else (share.indices for share in given)

    def begin(self) -> None:
        """Skip what is to be skipped, unless that is done, without drawing one index more.

        ``skip`` is then the number of whole batches that were skipped. Of a batch in which the place lies, as with
        another batch size than before, the rest comes first.
        """
        if self._begun:
            return
        self._begun, left = True, self.skip_samples
        if not left:
            next(islice(self._raw, self.skip, self.skip), None)
            return
        self.skip = 0
        for batch in self._raw:
            left -= _length(batch)
            if left < 0:
                self._rest.append(batch[left:])
                return
            self.skip += 1
            if not left:
                return

    def _shared(self, stream: Iterator[Any]) -> Iterator[Share]:
        self.begin()
        yield from shares(stream, self.rank, self.size, short=self.short, start=self.skip)

    def _payloads(self, given: Iterator[Any]) -> Iterator[_Payload]:
        self.begin()
        seed, epoch, loader, cycle = self.seed, self.epoch, self.loader, self.cycle
        for position, one in enumerate(given, self.skip):
            index, position = (one.indices, one.position) if isinstance(one, Share) else (one, position)
            yield _Payload(index, batch_seed(seed, epoch, loader, cycle, position), epoch)
