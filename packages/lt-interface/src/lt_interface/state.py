"""What can be saved and restored; World and Plan keep their first import path here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from lt_interface.plan import Plan
from lt_interface.world import World

__all__ = ["Plan", "Stateful", "Weights", "World"]


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


@runtime_checkable
class Weights(Protocol):
    """What saves and loads the weights of a module, such as the module itself.

    Example:
        >>> class Layer:
        ...     def __init__(self):
        ...         self.values = {"weight": 0.5}
        ...     def state_dict(self):
        ...         return dict(self.values)
        ...     def load_state_dict(self, state, strict=True, assign=False):
        ...         if strict and state.keys() != self.values.keys():
        ...             raise RuntimeError(f'missing or unexpected: "{min(state.keys() ^ self.values.keys())}"')
        ...         self.values.update(state)
        >>> layer = Layer()
        >>> layer.load_state_dict({"bias": 0.25}, strict=False)
        >>> isinstance(layer, Weights), layer.state_dict()
        (True, {'weight': 0.5, 'bias': 0.25})
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the weights by the user's names."""

    def load_state_dict(self, state_dict: Mapping[str, Any], /, strict: bool = True, assign: bool = False) -> Any:
        """Take over weights that ``state_dict`` returned, as ``torch.nn.Module.load_state_dict`` does.

        Args:
            state_dict: The weights by name.
            strict: Whether missing and unexpected names are an error; wrong shapes always are.
            assign: Whether the tensors are taken as they are, in the place of the module's. The core asks for it
                only where the module has parameters on the meta device.

        Returns:
            Anything; it is not used.

        Raises:
            RuntimeError: If the weights do not fit. Names in it that stand in double quotes, and after "size mismatch
                for", are listed by the core.
        """
