"""Launchers: how the ranks of a run are started, and what comes back from them."""

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
    """Result of a run, on its way from rank 0 to the process that launched it.

    Attributes:
        value: What the entry point returns, such as the metrics of ``validate``.
        weights_file: Path of the trained weights, or None when the module is shared.
        callback_states: State of each callback by its key.
        metrics: The callback metrics at the end.
        progress: Counters of completed things.

    Example:
        >>> Outcome(metrics={"val_loss": 0.25}).metrics["val_loss"]
        0.25
    """

    value: Any = None
    weights_file: str | None = None
    callback_states: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Launcher(Protocol):
    """Way to start the ranks of a run and to wait for them; nothing else launches.

    Attributes:
        name: The name users pass.

    Example:
        >>> from lt_interface.errors import Problem
        >>> class HereLauncher:
        ...     name = "here"
        ...     def problems(self, plan):
        ...         if len(plan.devices) * plan.num_nodes == 1:
        ...             return []
        ...         return [Problem('Trainer(launcher="here")', "it starts one process", fix="Write devices=1.")]
        ...     def launch(self, main, payload):
        ...         return main(payload)
        >>> launcher = HereLauncher()
        >>> isinstance(launcher, Launcher)
        True
        >>> launcher.launch(lambda payload: Outcome(value=payload + 1), 41).value
        42
    """

    name: str

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Return what of a plan this launcher cannot do.

        Args:
            plan: What was decided.

        Returns:
            The problems, all at once; empty if the plan can be launched.
        """
        ...

    def launch(self, main: Callable[[Any], Outcome], payload: Any) -> Outcome:
        """Run a call of the trainer in every rank, and return when all ranks have ended.

        The core calls it once for each ``fit``, ``validate``, ``test`` or ``predict``, where the strategy or the user
        names a launcher; an exception of a rank is raised here.

        Args:
            main: A function at the top level of a module, which each rank calls with the payload.
            payload: What the ranks need.

        Returns:
            The outcome of rank 0.
        """
        ...
