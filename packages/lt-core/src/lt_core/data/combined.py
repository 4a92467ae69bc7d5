"""Walk several loaders at once, in one of four modes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat
from types import FunctionType, MethodType
from typing import Any, Literal, Protocol, get_args

import torch
from torch.utils.data import DataLoader, IterableDataset

from lt_core.data.leaf import is_stateful, length
from lt_interface.errors import ConfigError, Problem, choice_problems, raise_problems
from lt_interface.nested import rebuilt

__all__ = ["CombinedLoader", "Mode", "combined_size", "flatten", "is_last", "outline", "rounds", "unflatten"]

Mode = Literal["min_size", "max_size_cycle", "max_size", "sequential"]
_INF = float("inf")
_BATCHES = (list, tuple, Mapping, torch.Tensor, str, bytes)


def _is_loader(thing: Any) -> bool:
    """Return whether a thing gives batches, where a list of batches does not count."""
    if _is_surely_loader(thing):
        return True
    if isinstance(thing, _BATCHES) or hasattr(thing, "__array__"):
        return False
    return hasattr(type(thing), "__iter__") and not hasattr(thing, "to")


def _is_surely_loader(thing: Any) -> bool:
    """Return whether a thing is of a kind that is in no batch."""
    return isinstance(thing, DataLoader | CombinedLoader | IterableDataset | FunctionType | MethodType | partial)


def _holds_loaders(tree: Any) -> bool:
    if not isinstance(tree, list | tuple):
        return isinstance(tree, Mapping)
    return any(_is_loader(item) or _hides_loaders(item) for item in tree)


def _hides_loaders(item: Any) -> bool:
    """Return whether an item of a list holds loaders; a mapping in a list may be a batch, and that of anything."""
    if isinstance(item, Mapping):
        values = item.values()
        return any(_is_surely_loader(v) or (_is_loader(v) and is_stateful(v)) or _hides_loaders(v) for v in values)
    return isinstance(item, list | tuple) and _holds_loaders(item)


def flatten(tree: Any) -> tuple[list[Any], list[tuple[Any, ...]]]:
    """Return the loaders in a nested structure, and the path of keys and indices to each.

    Mappings always are structure; a list or tuple is structure if it holds a loader, and a list of
    batches, itself a loader, if it holds none.
    """
    found = list(_placed(tree, ()))
    return [loader for loader, _ in found], [path for _, path in found]


def _placed(tree: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    if not _holds_loaders(tree):
        yield tree, path
        return
    for key, item in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        yield from _placed(item, (*path, key))


def outline(tree: Any) -> Any:
    """Return a structure like ``tree`` for `unflatten`, in which no list of batches is searched for loaders again."""
    return unflatten(tree, repeat(_absent))


def _absent() -> None:
    """Stand for a loader in an outline."""


def unflatten(tree: Any, leaves: Iterator[Any]) -> Any:
    """Return the structure of ``tree`` with ``leaves``, in order, in place of its loaders."""
    if not _holds_loaders(tree):
        return next(leaves)
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    filled = {key: unflatten(item, leaves) for key, item in items}
    return filled if type(tree) is dict else rebuilt(tree, filled)


class Track(Protocol):
    """One of the loaders that are walked side by side."""

    cycle: int

    def take(self) -> Any:
        """Return the next batch, or raise StopIteration."""
        ...

    def restart(self) -> None:
        """Begin again at the first batch."""
        ...


def rounds(tracks: Sequence[Track], mode: str) -> Iterator[list[Any]]:
    """Yield lists of one batch of each track, in one of the modes that walk side by side."""
    # A track past its first pass has ended once: so it is after a resume, too.
    unfinished = {number for number, track in enumerate(tracks) if not track.cycle}
    pads = mode == "max_size"
    while True:
        items: list[Any] = []
        for number, track in enumerate(tracks):
            if pads and number not in unfinished:
                items.append(None)
                continue
            try:
                items.append(track.take())
            except StopIteration:
                unfinished.discard(number)
                if mode == "min_size" or not unfinished:
                    return
                items.append(_first_again(track, number) if mode == "max_size_cycle" else None)
        yield items


def _first_again(track: Track, number: int) -> Any:
    track.restart()
    try:
        return track.take()
    except StopIteration:
        rule = "a loader that starts again must give a batch"
        raise ConfigError(Problem(f"loader {number}", rule, "none", "Check it.")) from None


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
    """Track of one iterable, which begins afresh at each pass and ends at a limit."""

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
    """Several loaders combined into one.

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
        raise_problems(choice_problems(f"CombinedLoader(mode={mode!r})", mode, get_args(Mode)))
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
        sizes = [min(length(loader), self.limit_of(number)) for number, loader in enumerate(self.flattened)]
        size = combined_size(sizes, self.mode)
        if size == _INF:
            raise TypeError(f"CombinedLoader(mode={self.mode!r}) has no length: a loader in it has none")
        return int(size)

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        tracks = [_Plain(leaf, self.limit_of(number)) for number, leaf in enumerate(self.flattened)]
        if self.mode == "sequential":
            for number, track in enumerate(tracks):
                for index, (batch,) in enumerate(rounds([track], self.mode)):
                    yield batch, index, number
            return
        tree = outline(self.iterables)
        for index, items in enumerate(rounds(tracks, self.mode)):
            yield unflatten(tree, iter(items)), index, 0

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
