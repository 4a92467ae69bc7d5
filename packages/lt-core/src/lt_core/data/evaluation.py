"""Passes over evaluation data: one loader after the other, or side by side, on as many ranks as there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import count
from typing import Any

from lt_core.data.combined import rounds, unflatten
from lt_core.data.dealing import END
from lt_core.data.leaf import Leaf
from lt_core.data.peers import FeedPeers

__all__ = ["Passes", "shared_weight"]

_INF = float("inf")


class Passes(ABC):
    """The part of a feed that evaluates: each batch comes with its number in its loader and the loader's number."""

    leaves: list[Leaf]
    sizes: list[int | float]
    mode: str
    num_batches: int | float
    batch_indices: list[int] | None
    weight: float
    shadows: bool
    _peers: FeedPeers | None
    _tree: Any

    @property
    def indices(self) -> list[int]:
        """Return `batch_indices` as a list of what the dataset was asked for; an empty one where nobody knows it."""
        found: Any = self.batch_indices
        if found is None:
            return []
        found = found.tolist() if hasattr(found, "tolist") else found
        return list(found) if isinstance(found, list | tuple) else [found]

    @abstractmethod
    def _measure(self, first: bool = False) -> None:
        """Set the sizes."""

    def _evaluation(self, epoch: int, limit: int | float) -> Iterator[tuple[Any, int, int]]:
        try:
            if self.mode != "sequential":
                yield from self._side_by_side(epoch, limit)
                return
            for number, leaf in enumerate(self.leaves):
                if min(self.sizes[number], limit):
                    self._open_evaluation(leaf, epoch)
                    size = min(self.sizes[number], limit)
                    yield from self._one_by_one(leaf, number, _INF if size >= leaf.size else size)
                    leaf.release()
        finally:
            for leaf in self.leaves:
                leaf.release()

    def _open_evaluation(self, leaf: Leaf, epoch: int) -> None:
        leaf.set_epoch(epoch)
        leaf.open(epoch)
        if leaf.dealer is not None:
            self._measure()

    def _one_by_one(self, leaf: Leaf, number: int, size: int | float) -> Iterator[tuple[Any, int, int]]:
        self.batch_indices, batch = None, END
        meets = self._peers if self.shadows and not leaf.even else None
        for index in count():
            before = batch
            try:
                batch = leaf.take() if index < size else END
            except StopIteration:
                batch = END
            ended = batch is END
            if meets is not None and meets.collectives.any(not ended):  # as many rounds as the longest rank has
                batch = before if ended else batch
            if batch is END:
                return
            self.batch_indices, self.weight = leaf.indices, 0.0 if ended else leaf.weight
            if self.weight or self.shadows or not index:
                yield batch, index, number

    def _side_by_side(self, epoch: int, limit: int | float) -> Iterator[tuple[Any, int, int]]:
        if not min(self.num_batches, limit):
            return
        for leaf in self.leaves:
            self._open_evaluation(leaf, epoch)
        total = min(self.num_batches, limit)
        steps = count() if total == _INF else range(int(total))
        for index, items in zip(steps, rounds(self.leaves, self.mode), strict=False):
            self.weight = shared_weight(self.leaves)
            yield unflatten(self._tree, iter(items)), index, 0


def shared_weight(leaves: list[Leaf]) -> float:
    """Return the weight of a round of batches: 1 where those of its leaves differ."""
    weight = leaves[0].weight
    return weight if all(leaf.weight == weight for leaf in leaves) else 1.0
