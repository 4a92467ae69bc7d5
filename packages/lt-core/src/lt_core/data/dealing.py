"""Deal batches of which only their order is known among the ranks.

An iterable dataset, a generator or a list of batches gives a rank whatever the user's code gives there: all ranks the
same batches, or each its own. So the ranks' first batches are compared, by a digest. Where all are equal, every rank
reads the one stream and keeps every W-th batch of it, W the number of data ranks; else the data is taken as sharded by
the user, and nothing is cut. A global batch is W batches. What is left of the stream behind the last whole one is dealt
too: ranks that get none of it repeat its first batch, with weight 0, so that all ranks end at the same one. It is left
out in training where the loader has ``drop_last=True``, and where streams run side by side, which end at other rounds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from torch.utils.data import DataLoader

from lt_core.data.nested import batch_size, digest
from lt_core.notices import info
from lt_interface import Collectives, World

__all__ = ["END", "Dealer"]

END: Any = object()


class Dealer:
    """Decision how one loader's batches are dealt among ranks, and the rank's share by it.

    Args:
        user: The loader.
        where: How the log names it.
        world: The data ranks to deal to; a world of one takes what each rank's own code gives.
        ranks: The number of all ranks.
        collectives: The exchange with all ranks.
        train: Whether for training; in evaluation a rank without any batch gets one of weight 0.
        single: Whether the loader is the only one.

    Attributes:
        dealt: Whether all ranks give the same batches; None where that is not known yet.
        left_out: Batches at the end of the pass that made no whole global batch.
        weights: For batches that were dealt and not yet counted, the factor of this rank's mean in the mean over
            ranks, and the samples of their global batch, as far as they are known.
    """

    def __init__(
        self, user: Any, where: str, *, world: World, ranks: int, collectives: Collectives, train: bool, single: bool
    ) -> None:
        self.where, self.rank, self.size, self.train = where, world.data_rank, world.data_size, train
        self.ranks, self.collectives = ranks, collectives
        self.whole = train and (not single or bool(getattr(user, "drop_last", False)))
        self.batch: int | None = user.batch_size if isinstance(user, DataLoader) else None
        self.dealt: bool | None = None if self.size > 1 else False
        self.due = self.size > 1
        self.left_out = 0
        self.weights: deque[tuple[float, int]] = deque()

    @property
    def shards(self) -> int:
        """Return how many ranks the batches are dealt among."""
        return self.size if self.dealt else 1

    def share(self, batches: int | float) -> int | float:
        """Return how many of the loader's batches this rank takes at the most."""
        if not self.dealt or batches == float("inf"):
            return batches
        return batches // self.size if self.whole else -(-batches // self.size)

    def resume(self, dealt: bool | None) -> None:
        """Take a saved decision, until the next first batch is compared; a place of one process is one of all."""
        if self.size > 1:
            self.dealt, self.due = dealt is not False, True

    def deal(self, raw: Iterator[Any], begins: bool) -> Iterator[Any]:
        """Yield this rank's batches of a pass.

        Args:
            raw: All batches of the pass that the loader gives here.
            begins: Whether all ranks begin a pass now, so that they may exchange something.
        """
        self.left_out = 0
        self.weights.clear()
        first = next(raw, END)
        if begins and self.due:
            self._compare(first)
        if begins and not self.train and not self.dealt and self.collectives.any(first is END):
            yield from self._borrowed(first)
        batches = raw if first is END else chain((first,), raw)
        yield from self._every(batches) if self.dealt else batches

    def foresee(self, first: Any) -> None:
        """Compare first batches before a pass begins, for sizes that are asked for earlier; the pass decides."""
        self.dealt = self._alike(first)

    def _alike(self, first: Any) -> bool:
        mine = None if first is END else digest(first)
        return not self.collectives.any(mine != self.collectives.broadcast_object(mine))

    def _compare(self, first: Any) -> None:
        """Find out whether all ranks give the same batches, and report it."""
        same = self._alike(first)
        if same and first is END:
            return
        self.due, self.dealt = False, same
        if same:
            info(
                f"{self.where}: all ranks give the same first batch, so each takes one batch of {self.size} in turn. "
                "If each is to take all that it gives, set Trainer(use_distributed_sampler=False)."
            )
        else:
            info(
                f"{self.where}: the ranks' first batches differ, so the data is taken as sharded already and nothing "
                "is cut. If the ranks are to share one stream, give it the same order on every rank."
            )

    def _borrowed(self, first: Any) -> Iterator[Any]:
        """Yield another rank's first batch, of weight 0, where this rank has none: so that it knows what is logged."""
        for rank in range(self.ranks):
            found = self.collectives.broadcast_object(None if first is END else (first,), rank)
            if found is None:
                continue
            if first is END:
                self.weights.append((0.0, 0))
                yield found[0]
            return

    def _every(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield every W-th batch, and note its weight."""
        while True:
            mine, sizes = END, []
            for number, batch in enumerate(islice(batches, self.size)):
                if number in (0, self.rank):  # a rank that has none of its own repeats the first
                    mine = batch
                sizes.append(None if self.batch is None else batch_size(batch)[0])
            if len(sizes) < self.size and (self.whole or not sizes):
                self.left_out = len(sizes)
                return
            known = [size for size in sizes if size is not None and size <= (self.batch or 0)]
            total = sum(known) if len(known) == len(sizes) else 0
            own = 0.0 if self.rank >= len(sizes) else known[self.rank] / total if total else 1 / len(sizes)
            self.weights.append((own * self.size, total))
            yield mine
