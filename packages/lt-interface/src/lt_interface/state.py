"""Name what can be saved and restored; World and Plan are offered here too, under the path of old."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from lt_interface.plan import Plan
from lt_interface.world import World

__all__ = ["Plan", "Stateful", "World"]


@runtime_checkable
class Stateful(Protocol):
    """Be saved and restored, in the shape that torch already uses."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as a tree of plain values and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Take over a state that ``state_dict`` returned."""
        ...
