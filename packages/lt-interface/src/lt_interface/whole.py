"""Base of strategies under which every process holds the whole module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lt_interface.strategy import StrategyVerbs

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from lt_interface.engine import Engine
    from lt_interface.plan import Plan
    from lt_interface.precision import Precision
    from lt_interface.state import Weights

__all__ = ["WholeModuleStrategy"]


class WholeModuleStrategy(StrategyVerbs):
    """Base of a strategy whose processes each hold the whole module, on one device.

    A subclass adds ``name``, ``problems``, ``setup``, ``init_context``, ``shard`` and ``leave``.

    Example:
        >>> class Card:
        ...     type = "cuda"
        >>> class Net(dict):
        ...     def to(self, device):
        ...         print("now on the", device)
        >>> strategy, net = WholeModuleStrategy(), Net(weight=0.5)
        >>> strategy.weights(net) is net, strategy.checkpoint_io()
        (True, 'safetensors')
        >>> strategy.engine(net, [], [], None, None, default=lambda *args: "the plain engine")
        'the plain engine'
        >>> strategy.device = Card()
        >>> strategy.release(net, [])
        now on the cpu
    """

    default_launcher: str | None = None
    collective_forward = collective_weights = False
    mesh: Any = None

    def engine(
        self,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        schedulers: Sequence[Any],
        precision: Precision,
        plan: Plan,
        default: Callable[..., Engine],
    ) -> Engine:
        """Return the plain engine.

        Args:
            module: What ``shard`` returned.
            optimizers: The optimizers over its parameters.
            schedulers: The learning-rate schedulers.
            precision: The precision.
            plan: What was decided.
            default: Builds the plain engine.
        """
        return default(module, optimizers, schedulers, precision, plan)

    def weights(self, module: nn.Module) -> Weights:
        """Return the module itself, which holds all of its weights.

        Args:
            module: What ``shard`` returned.
        """
        return module

    def checkpoint_io(self) -> str:
        """Return ``"safetensors"``."""
        return "safetensors"

    def release(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Move the module and the optimizers' states to the CPU, at any depth of these.

        Args:
            module: What ``shard`` returned.
            optimizers: The user's optimizers.
        """
        if self.device.type == "cpu":
            return
        module.to("cpu")
        for optimizer in optimizers:
            for key, state in list(optimizer.state.items()):
                optimizer.state[key] = _on_cpu(state)


def _on_cpu(value: Any) -> Any:
    """Return a value whose tensors are on the CPU; a dict or list stays the object that others may hold."""
    if isinstance(value, dict):
        value.update({key: _on_cpu(entry) for key, entry in value.items()})
    elif isinstance(value, list):
        value[:] = map(_on_cpu, value)
    elif isinstance(value, tuple):
        moved = map(_on_cpu, value)
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    elif callable(getattr(value, "to", None)):
        return value.to("cpu")
    return value
