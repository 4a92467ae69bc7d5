"""What can be saved and restored; World and Plan keep their first import path here."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from lt_interface.plan import Plan
from lt_interface.world import World

__all__ = ["Plan", "Stateful", "World"]


@runtime_checkable
class Stateful(Protocol):
    """Anything with torch's ``state_dict`` / ``load_state_dict`` pair.

    Example:
        >>> class Counter:
        ...     def __init__(self):
        ...         self.count = 0
        ...     def state_dict(self):
        ...         return {"count": self.count}
        ...     def load_state_dict(self, state):
        ...         self.count = state["count"]
        >>> counter = Counter()
        >>> counter.load_state_dict({"count": 3})
        >>> counter.state_dict(), isinstance(counter, Stateful)
        ({'count': 3}, True)
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the state as a tree of plain values and tensors."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Take over a state that ``state_dict`` returned.

        Args:
            state: The state.

        Returns:
            Anything; it is not used.
        """
