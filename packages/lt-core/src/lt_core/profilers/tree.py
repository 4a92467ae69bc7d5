"""Keep what was measured as a tree: each action below the one that was open when it began."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

__all__ = ["Action"]


class Action:
    """Action at one place of the tree.

    Args:
        name: The action's name; empty for the whole run.
        outer: The action that it is part of.
        known: The durations by name, whatever the place; one that is not there yet is added.

    Attributes:
        inside: The actions that are part of it, by name.
        seconds: How long it took, over all calls.
        durations: The seconds of each call of that name, shared by all places; 8 bytes each.
        open: Whether it runs.
        began: When it began, in seconds of the performance counter.
    """

    __slots__ = ("began", "durations", "inside", "name", "open", "outer", "seconds")

    def __init__(self, name: str, outer: Action | None, known: dict[str, array[float]]) -> None:
        self.name, self.outer = name, outer
        self.inside: dict[str, Action] = {}
        self.seconds = self.began = 0.0
        self.open = False
        if outer is not None:
            self.durations = known.setdefault(name, array("d"))

    @property
    def own(self) -> float:
        """Return the seconds that it took beside the actions inside it."""
        return max(self.seconds - sum(action.seconds for action in self.inside.values()), 0.0)

    def above(self) -> Iterator[Action]:
        """Yield the action and those that it is part of, outwards, without the whole run."""
        action: Action | None = self
        while action is not None and action.outer is not None:
            yield action
            action = action.outer
