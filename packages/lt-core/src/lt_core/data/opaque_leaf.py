"""Deliver from an iterable of which nothing is known but how to iterate it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from lt_core.data.leaf import END, Leaf, is_stateful, state_of
from lt_core.data.stream import find_generators
from lt_core.notices import info, warn

__all__ = ["OpaqueLeaf", "fast_forward"]


class OpaqueLeaf(Leaf):
    """Iterable of which nothing is known but how to iterate it.

    A place in it is found again by its own ``state_dict`` if it has one, else by drawing and dropping
    batches, with a warning that says how many.
    """

    exact = False
    kept_as = "user"

    def __init__(self, user: Any, number: int, source: Any = None) -> None:
        self.source = user if source is None else source
        super().__init__(user, number, self.source)
        self.stateful = self.keeps_place = is_stateful(user)
        self.one_shot = hasattr(self.source, "__next__")
        self.drawn = 0
        self.generators = find_generators(user) if isinstance(user, DataLoader) else []
        self.peek_draws = not getattr(user, "num_workers", 0)

    def open(self, epoch: int, cycle: int = 0) -> None:
        """Begin a pass; an iterator that can be used once goes on where it stands."""
        self.drawn += self.consumed() if self.one_shot else 0
        super().open(epoch, cycle)

    def state(self) -> dict[str, Any]:
        """Return the place, and the loader's own state if it keeps one."""
        return {
            **super().state(),
            "drawn": self.drawn,
            "user": state_of(self.user) if self.stateful else None,
        }

    def state_at(self, batches: int) -> dict[str, Any] | None:
        """Return an earlier place, which a loader that keeps its own has not."""
        return None if self.stateful else super().state_at(batches)

    def load(self, state: dict[str, Any]) -> None:
        """Take over the loader's own state."""
        super().load(state)
        if self.one_shot and not self.stateful:
            self._forward(iter(self.source), state.get("drawn", 0) + state["batches"])
            self.drawn = state.get("drawn", 0)
            self.batches = state["batches"] // self.shards
        if self.stateful and state.get("user") is not None:
            self._load_kept(state["user"], state)

    def _begin(self, skip: int, samples: int) -> None:
        made = self.source if hasattr(self.source, "__iter__") else self.source()
        raw = iter(made)
        if skip and not self.stateful and not self.one_shot:
            self._forward(raw, skip)
        self._give(raw)

    def _forward(self, iterator: Iterator[Any], skip: int) -> None:
        fast_forward(iterator, skip, type(self.user).__name__, "Give it state_dict() and load_state_dict()")


def fast_forward(iterator: Iterator[Any], skip: int, name: str, fix: str) -> None:
    """Draw and drop batches, and report it."""
    if not skip:
        return
    warn(
        f"Resuming inside an epoch: {name} cannot be set to its place, so its first {skip} batches are loaded once "
        f"more and dropped, which takes as long as loading them took. {fix}, and a resume is immediate."
    )
    for done in range(skip):
        if next(iterator, END) is END:
            warn(f"Resuming inside an epoch: {name} ended after {done} of the {skip} batches to pass over.")
            return
    info(f"Passed over {skip} batches of {name}")
