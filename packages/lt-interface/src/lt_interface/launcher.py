"""Say how the ranks of a run are started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from lt_interface.errors import Problem
    from lt_interface.plan import Plan

__all__ = ["Launcher", "Outcome"]


@dataclass
class Outcome:
    """Carry a run's result from rank 0 back to the process that launched it.

    Attributes:
        value: What the entry point returns, such as the metrics of ``validate``.
        weights_file: Path of the trained weights, or None when the module is shared.
        callback_states: State of each callback by its key.
        metrics: The callback metrics at the end.
        progress: Counters of completed things.
    """

    value: Any = None
    weights_file: str | None = None
    callback_states: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Launcher(Protocol):
    """Start the ranks and wait for them; nothing else launches."""

    name: str

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Return what of the plan can not be launched so."""
        ...

    def launch(self, main: Callable[[Any], Outcome], payload: Any) -> Outcome:
        """Call the module-level ``main(payload)`` in every rank and return rank 0's outcome."""
        ...
