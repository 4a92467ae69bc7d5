"""Base of strategies under which every process holds the whole module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lt_interface.errors import MisconfigurationException, Problem
from lt_interface.strategy import StrategyVerbs

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from lt_interface.engine import Engine
    from lt_interface.plan import Plan
    from lt_interface.precision import Precision
    from lt_interface.state import Weights

__all__ = ["WholeModuleStrategy"]


class WholeModuleStrategy(StrategyVerbs):
    """Base of a strategy whose processes each hold the whole module, on one device.

    A subclass adds ``name``, ``problems``, ``setup``, ``init_context`` and ``leave``.

    Example:
        >>> from lt_interface import PlainPrecision
        >>> class Card:
        ...     def __str__(self):
        ...         return "card"
        ...     type = "cuda"
        >>> class Net(dict):
        ...     _parameters = _buffers = {}
        ...     def named_children(self):
        ...         return []
        ...     def to(self, device):
        ...         print("now on the", device)
        ...         return self
        >>> strategy, net = WholeModuleStrategy(), Net(weight=0.5)
        >>> strategy.device = Card()
        >>> net = strategy.shard(net, PlainPrecision(), loads_weights=False)
        now on the card
        >>> strategy.weights(net) is net, strategy.checkpoint_io()
        (True, 'safetensors')
        >>> strategy.engine(net, [], [], None, None, default=lambda *args: "the plain engine")
        'the plain engine'
        >>> strategy.release(net, [])
        now on the cpu
    """

    default_launcher: str | None = None
    collective_forward = collective_weights = False
    mesh: Any = None

    def shard(self, module: nn.Module, precision: Precision, loads_weights: bool) -> nn.Module:
        """Return the module in the precision's format and on the device, with memory where it had none.

        What was built on the meta device is filled by ``reset_parameters``, children before the module that holds
        them; tied parameters stay tied.

        Args:
            module: The module.
            precision: Converts it.
            loads_weights: Whether weights are loaded next, so that a part need not fill itself.

        Raises:
            MisconfigurationException: If a part without values has no ``reset_parameters``, and no weights are loaded.
        """
        _materialise(module, self.device, loads_weights)
        return precision.convert(module).to(self.device)

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


def _materialise(module: nn.Module, device: torch.device, loads_weights: bool) -> None:
    made: dict[int, Tensor] = {}
    empty = [(name, part) for name, part in _inside_out(module, "", set()) if _fill(part, device, made)]
    resets: list[Any] = [getattr(p, "reset_parameters", getattr(p, "_reset_parameters", None)) for _, p in empty]
    blank = [name or type(part).__name__ for (name, part), reset in zip(empty, resets, strict=True) if reset is None]
    if blank and not loads_weights:
        rule, fix = "modules built on the meta device need weights", "reset_parameters() method, or load a checkpoint"
        raise MisconfigurationException(
            Problem(type(module).__name__, rule, f"none for {', '.join(blank)}", f"Give them a {fix}.")
        )
    for reset in filter(None, resets):  # once all have memory: a module may fill its children's
        reset()


def _inside_out(module: nn.Module, name: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module once, in the order in which constructors end, with its path."""
    seen.add(id(module))
    for key, child in module.named_children():
        if id(child) not in seen:
            yield from _inside_out(child, f"{name}.{key}" if name else key, seen)
    yield name, module


def _fill(part: nn.Module, device: torch.device, made: dict[int, Tensor]) -> bool:
    """Give memory to a module's own tensors that have none; return whether one was no other module's before."""
    found = False
    for tensors in (part._parameters, part._buffers):
        for name, old in tensors.items():
            if old is None or not old.is_meta:
                continue
            if id(old) not in made:
                found = True
                kind: Any = type(old)
                new = old.new_empty_strided(old.size(), old.stride(), device=device)
                if tensors is part._parameters:
                    new = kind(new, requires_grad=old.requires_grad)
                    new.__dict__.update(old.__dict__)
                made[id(old)] = new
            tensors[name] = made[id(old)]  # type: ignore[assignment]
    return found


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
