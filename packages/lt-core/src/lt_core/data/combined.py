"""Walk several loaders at once, in one of four modes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Literal, Protocol, cast, get_args

import torch
from torch.utils.data import DataLoader, IterableDataset

from lt_interface.errors import ConfigError, Problem, nearest

__all__ = ["CombinedLoader", "Mode", "combined_size", "flatten", "is_last", "is_loader", "rounds", "unflatten"]

Mode = Literal["min_size", "max_size_cycle", "max_size", "sequential"]
_INF = float("inf")
_BATCHES = (list, tuple, Mapping, torch.Tensor, str, bytes)


def is_loader(thing: Any) -> bool:
    """Return whether a thing gives batches, where a list of batches does not count."""
    if isinstance(thing, DataLoader | CombinedLoader | IterableDataset | FunctionType | MethodType | partial):
        return True
    if isinstance(thing, _BATCHES) or hasattr(thing, "__array__"):
        return False
    return hasattr(type(thing), "__iter__") and not hasattr(thing, "to")


def _holds_loaders(tree: Any) -> bool:
    if isinstance(tree, Mapping):
        return True
    if isinstance(tree, list | tuple):
        return any(is_loader(item) or (isinstance(item, list | tuple) and _holds_loaders(item)) for item in tree)
    return False


def flatten(tree: Any) -> tuple[list[Any], list[tuple[Any, ...]]]:
    """Return the loaders in a nested structure, and the path of keys and indices to each.

    Mappings always are structure; a list or tuple is structure if it holds a loader, and a list of
    batches, itself a loader, if it holds none.
    """
    leaves: list[Any] = []
    paths: list[tuple[Any, ...]] = []

    def walk(node: Any, path: tuple[Any, ...]) -> None:
        if isinstance(node, Mapping):
            for key, item in node.items():
                walk_item(item, (*path, key))
        else:
            for index, item in enumerate(node):
                walk_item(item, (*path, index))

    def walk_item(item: Any, path: tuple[Any, ...]) -> None:
        if _holds_loaders(item):
            walk(item, path)
        else:
            leaves.append(item)
            paths.append(path)

    walk_item(tree, ())
    return leaves, paths


def unflatten(tree: Any, leaves: Iterator[Any]) -> Any:
    """Return the structure of ``tree`` with ``leaves``, in order, in place of its loaders."""
    if not _holds_loaders(tree):
        return next(leaves)
    if isinstance(tree, Mapping):
        items = {key: unflatten(item, leaves) for key, item in tree.items()}
        return items if type(tree) is dict else cast(Any, type(tree))(items)
    built = [unflatten(item, leaves) for item in tree]
    if hasattr(tree, "_fields"):
        return cast(Any, type(tree))(*built)
    return built if isinstance(tree, list) else tuple(built)


class Track(Protocol):
    """Be one of the loaders that are walked side by side."""

    cycle: int

    def take(self) -> Any:
        """Return the next batch, or raise StopIteration."""
        ...

    def restart(self) -> None:
        """Begin again at the first batch."""
        ...


def _min_size(tracks: Sequence[Track]) -> Iterator[list[Any]]:
    while True:
        try:
            items = [track.take() for track in tracks]
        except StopIteration:
            return
        yield items


def _max_size(tracks: Sequence[Track]) -> Iterator[list[Any]]:
    open_tracks = set(range(len(tracks)))
    while True:
        items: list[Any] = [None] * len(tracks)
        for number, track in enumerate(tracks):
            if number in open_tracks:
                try:
                    items[number] = track.take()
                except StopIteration:
                    open_tracks.discard(number)
        if not open_tracks:
            return
        yield items


def _max_size_cycle(tracks: Sequence[Track]) -> Iterator[list[Any]]:
    # A track past its first pass has ended once: so it is after a resume, too.
    open_tracks = {number for number, track in enumerate(tracks) if not track.cycle}
    while True:
        items: list[Any] = []
        for number, track in enumerate(tracks):
            try:
                items.append(track.take())
            except StopIteration:
                open_tracks.discard(number)
                if not open_tracks:
                    return
                track.restart()
                try:
                    items.append(track.take())
                except StopIteration:
                    raise ConfigError(
                        Problem(f"loader {number}", "a loader that starts again must give a batch", "none", "Check it.")
                    ) from None
        yield items


_ROUNDS: dict[str, Callable[[Sequence[Track]], Iterator[list[Any]]]] = {
    "min_size": _min_size,
    "max_size": _max_size,
    "max_size_cycle": _max_size_cycle,
}


def rounds(tracks: Sequence[Track], mode: str) -> Iterator[list[Any]]:
    """Yield lists of one batch of each track, in one of the modes that walk side by side."""
    return _ROUNDS[mode](tracks)


def combined_size(sizes: Sequence[int | float], mode: str) -> int | float:
    """Return how many batches a combination of loaders of these sizes gives."""
    if not sizes:
        return 0
    if mode == "sequential":
        return sum(sizes)
    return min(sizes) if mode == "min_size" else max(sizes)


def is_last(ended: Sequence[bool], cycled: Sequence[bool], mode: str) -> bool:
    """Return whether a round was the last, by whether each track's pass ended and whether it is past its first."""
    if mode == "min_size":
        return any(ended)
    return all(a or (b and mode == "max_size_cycle") for a, b in zip(ended, cycled, strict=True))


class _Plain:
    """Walk one iterable afresh at each pass, up to a limit."""

    def __init__(self, iterable: Iterable[Any], limit: int | float) -> None:
        self.iterable, self.limit = iterable, limit
        self.cycle = self.taken = 0
        self.iterator: Iterator[Any] | None = None

    def take(self) -> Any:
        if self.taken >= self.limit:
            raise StopIteration
        if self.iterator is None:
            self.iterator = self._begin()
        batch = next(self.iterator)
        self.taken += 1
        return batch

    def restart(self) -> None:
        self.cycle, self.taken, self.iterator = self.cycle + 1, 0, self._begin()

    def _begin(self) -> Iterator[Any]:
        made: Any = self.iterable if hasattr(self.iterable, "__iter__") else self.iterable()  # type: ignore[operator]
        return iter(made)


class CombinedLoader:
    """Combine several loaders into one.

    Iterating yields ``(batch, batch_idx, dataloader_idx)``. In the modes that walk side by side the
    batch has the structure of ``iterables``, with a batch of each loader in it, and ``dataloader_idx``
    is 0; in ``"sequential"`` mode it is a batch of loader ``dataloader_idx``.

    Args:
        iterables: Loaders in nested lists, tuples and dicts.
        mode: ``"min_size"`` ends with the shortest loader; ``"max_size_cycle"`` with the longest, the
            others starting again; ``"max_size"`` with the longest, with None for the others;
            ``"sequential"`` takes one after another.

    Raises:
        ConfigError: If there is no such mode.
    """

    def __init__(self, iterables: Any, mode: Mode = "min_size") -> None:
        if mode not in get_args(Mode):
            fix = nearest(mode, get_args(Mode)) or f"Use one of {', '.join(get_args(Mode))}."
            raise ConfigError(Problem(f"CombinedLoader(mode={mode!r})", "no mode of that name", "", fix))
        self.iterables = iterables
        self.mode: Mode = mode
        self.flattened, self.paths = flatten(iterables)
        self._limits: list[int | float] | None = None

    @property
    def limits(self) -> list[int | float] | None:
        """Return the most batches that each loader gives in a pass, or None for no limit."""
        return self._limits

    @limits.setter
    def limits(self, limits: int | float | Sequence[int | float] | None) -> None:
        if isinstance(limits, int | float):
            limits = [limits] * len(self.flattened)
        if limits is not None and len(limits) != len(self.flattened):
            got = f"{len(limits)} limits for {len(self.flattened)} loaders"
            raise ConfigError(
                Problem("CombinedLoader.limits", "one limit a loader", got, "Give one number, or a list.")
            )
        self._limits = None if limits is None else list(limits)

    def limit_of(self, number: int) -> int | float:
        """Return the most batches that loader ``number`` gives in a pass."""
        return _INF if self._limits is None else self._limits[number]

    def __len__(self) -> int:
        sizes: list[int | float] = []
        for number, leaf in enumerate(self.flattened):
            try:
                sizes.append(min(len(leaf), self.limit_of(number)))
            except (TypeError, NotImplementedError):
                sizes.append(self.limit_of(number))
        size = combined_size(sizes, self.mode)
        if size == _INF:
            raise TypeError(f"CombinedLoader(mode={self.mode!r}) has no length: a loader in it has none")
        return int(size)

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        tracks = [_Plain(leaf, self.limit_of(number)) for number, leaf in enumerate(self.flattened)]
        if self.mode == "sequential":
            for number, track in enumerate(tracks):
                index = 0
                while True:
                    try:
                        batch = track.take()
                    except StopIteration:
                        break
                    yield batch, index, number
                    index += 1
            return
        for index, items in enumerate(rounds(tracks, self.mode)):
            yield unflatten(self.iterables, iter(items)), index, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the loaders that have one, by their number."""
        return {
            str(number): leaf.state_dict()
            for number, leaf in enumerate(self.flattened)
            if callable(getattr(leaf, "state_dict", None))
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give the loaders back their states."""
        for number, one in state.items():
            self.flattened[int(number)].load_state_dict(one)
