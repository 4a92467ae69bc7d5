"""Let the ranks that a feed runs in begin its passes, deal its batches and end its epochs together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from lt_core.data.dealing import Dealer
from lt_core.data.leaf import Leaf, SequenceLeaf
from lt_core.data.stream import batch_seed
from lt_core.notices import info
from lt_core.state import rng
from lt_interface import Collectives, World

__all__ = ["FeedPeers"]


class FeedPeers:
    """Ranks of a feed, where they are several.

    Args:
        collectives: The exchange with them.
        size: Their number.
        world: The data ranks that loaders are shared among; a world of one where nothing is shared.
        seed: The run's seed.

    Attributes:
        even: Whether all loaders give every rank equally many batches.
    """

    def __init__(self, collectives: Collectives, size: int, world: World, seed: int) -> None:
        self.collectives, self.size, self.world, self.seed = collectives, size, world, seed
        self.even = self._reported = False

    def join(self, leaves: list[Leaf], places: list[str], train: bool) -> None:
        """Let loaders be drawn from and dealt by all ranks together."""
        for leaf, where in zip(leaves, places, strict=True):
            if self.world.size > 1:
                leaf.agreed = partial(self._agreed, leaf)
            else:
                leaf.even = False
            if not leaf.even and not leaf.indexed:
                peers: dict[str, Any] = {"world": self.world, "ranks": self.size, "collectives": self.collectives}
                leaf.dealer = Dealer(leaf.user, where, train=train, single=len(leaves) == 1, **peers)
                leaf.exact = isinstance(leaf, SequenceLeaf)  # one rank's wrong length must not hang the others
        self.even = all(leaf.even for leaf in leaves)

    @contextmanager
    def _agreed(self, leaf: Leaf) -> Iterator[None]:
        """Let all ranks begin a pass under rank 0's random state, which advances by it; the others keep their own.

        A pass that begins anew within an epoch may begin on one rank alone: then all take a state drawn from the seed.
        """
        if leaf.dealer is not None and leaf.dealer.dealt is False:
            yield
            return
        own, sampling = rng.snapshot(), leaf.sampling
        if leaf.cycle and not self.even:
            rng.seed_process(batch_seed(self.seed, leaf.epoch, leaf.number, leaf.cycle, 0))
        else:
            states = (
                {name: own[name] for name in ("python", "numpy", "torch")},
                list(map(rng.generator_state, sampling)),
            )
            common, generators = self.collectives.broadcast_object(states)
            if self.world.rank == 0:
                yield
                return
            rng.restore(common)
            for generator, state in zip(sampling, generators, strict=True):
                rng.set_generator_state(generator, state)
        try:
            yield
        finally:
            rng.restore(own)

    def fewest(self, batches: int | float) -> int | float:
        """Return the smallest of the ranks' numbers of batches."""
        return min(self.collectives.gather_object(batches))

    def report_rest(self, leaves: list[Leaf], ahead: bool, where: str) -> None:
        """Report, in the first epoch that leaves some out, at least how many batches it left out.

        Args:
            leaves: The loaders.
            ahead: Whether this rank has a batch that is not used.
            where: How the line names them.
        """
        if self._reported:
            return
        rest = sum(0 if leaf.dealer is None else leaf.dealer.left_out for leaf in leaves)
        rest += sum(self.collectives.gather_object(int(ahead)))
        if rest:
            self._reported = True
            info(
                f"{where}: an epoch ends for all {self.size} ranks with the first that has no further batch; at least "
                f"{rest} batches were left out of this one. Give each rank equally many."
            )
