"""Plain counterparts of the parts with which a strategy is tested, so that no core is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from lt_interface.precision import PlainPrecision

__all__ = ["ReferenceAccelerator", "ReferenceEngine", "ReferenceLauncher", "ReferencePrecision"]


class ReferenceAccelerator:
    """Accelerator of the CPU.

    Example:
        >>> ReferenceAccelerator().parse_devices("auto"), ReferenceAccelerator().default_strategy(1, 1)
        ([0], 'single_device')
    """

    name = "reference"
    kind = "cpu"
    priority = 0

    def is_available(self) -> bool:
        """Return True."""
        return True

    def device_count(self) -> int:
        """Return 1."""
        return 1

    def parse_devices(self, spec: int | str | Sequence[int]) -> list[int]:
        """Return the first index."""
        return [0]

    def default_strategy(self, devices: int, nodes: int) -> str:
        """Return a name."""
        return "single_device"

    def device(self, index: int) -> Any:
        """Return the CPU."""
        import torch

        return torch.device("cpu")

    def setup(self, device: Any) -> None:
        """Do nothing."""

    def stats(self, device: Any) -> dict[str, Any]:
        """Return no figures."""
        return {}

    def rng_state(self, device: Any) -> Any:
        """Return None: the CPU's state is the process's."""
        return None

    def set_rng_state(self, device: Any, state: Any) -> None:
        """Do nothing."""

    def teardown(self) -> None:
        """Do nothing."""


class ReferenceLauncher:
    """Launcher for ranks that stand already: it runs the call in this process.

    Example:
        >>> ReferenceLauncher().launch(lambda request: request + 1, 41)
        42
    """

    name = "reference"
    passes = "live"

    def problems(self, plan: Any) -> Sequence[Any]:
        """Return none."""
        return []

    def launch(self, main: Callable[[Any], Any], request: Any, plan: Any = None, cluster: Any = None) -> Any:
        """Return what the entry point returns for the request."""
        return main(request)


class ReferencePrecision(PlainPrecision):
    """Precision of 32 bits.

    Example:
        >>> ReferencePrecision().convert("module"), ReferencePrecision().convert_batch([1, 2])
        ('module', [1, 2])
    """


class ReferenceEngine:
    """Simplest engine that fills the interface.

    Args:
        module: The module, its parameters final.
        optimizers: The optimizers, in the user's order.
        schedulers: The schedulers; left to the core.
        precision: The precision.
        plan: What was decided; not used.

    Example:
        >>> class Net:
        ...     def training_step(self, batch, batch_idx):
        ...         return batch * 2
        >>> engine = ReferenceEngine(Net(), [], [], ReferencePrecision(), None)
        >>> engine.call["training_step"](21, 0)
        42
    """

    owns: frozenset[str] = frozenset()
    place: Callable[[Any], Any] | None = None
    window: Callable[[bool], AbstractContextManager[Any] | None] | None = None
    before_forward: Callable[[], None] | None = None
    boundary: Callable[[], None] | None = None

    def __init__(
        self, module: Any, optimizers: Sequence[Any], schedulers: Sequence[Any], precision: Any, plan: Any
    ) -> None:
        self.model = module
        self.optimizers: Sequence[Any] = list(optimizers)
        self.precision = precision
        self.call: Mapping[str, Callable[..., Any]] = {
            name: getattr(module, name)
            for name in ("training_step", "validation_step", "test_step", "predict_step")
            if hasattr(module, name)
        }

    def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass."""
        self.precision.scale(loss).backward(*args, **kwargs)

    def unscale(self, index: int) -> None:
        """Unscale the gradients."""
        self.precision.unscale(self.optimizers[index])

    def clip(self, index: int, value: float, algorithm: str) -> Any:
        """Clip the gradients."""
        from torch.nn.utils import clip_grad_norm_, clip_grad_value_

        parameters = [p for group in self.optimizers[index].param_groups for p in group["params"]]
        return clip_grad_norm_(parameters, value) if algorithm == "norm" else clip_grad_value_(parameters, value)

    def update(self, index: int, last: bool, closure: Callable[[], Any] | None = None, **kwargs: Any) -> bool:
        """Step an optimizer."""
        stepped: bool = self.precision.step(self.optimizers[index], closure, **kwargs)
        return stepped

    def optimizer_states(self) -> list[dict[str, Any]]:
        """Return the states with names in the place of numbers."""
        states = []
        for optimizer in self.optimizers:
            names, state = self._names(optimizer), optimizer.state_dict()
            groups = [{**g, "params": [names[i] for i in g["params"]]} for g in state["param_groups"]]
            states.append({"state": {names[i]: v for i, v in state["state"].items()}, "param_groups": groups})
        return states

    def load_optimizer_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Take over states with names."""
        from lt_interface.errors import CheckpointError

        if len(states) != len(self.optimizers):
            raise CheckpointError(f"{len(states)} states for {len(self.optimizers)} optimizers")
        for optimizer, state in zip(self.optimizers, states, strict=True):
            numbers = {name: i for i, name in enumerate(self._names(optimizer))}
            if {n for g in state["param_groups"] for n in g["params"]} != set(numbers):
                raise CheckpointError("the state is of other parameters")
            groups = [{**g, "params": [numbers[n] for n in g["params"]]} for g in state["param_groups"]]
            optimizer.load_state_dict(
                {"state": {numbers[n]: v for n, v in state["state"].items()}, "param_groups": groups}
            )

    def close(self) -> None:
        """Leave the module as it is."""

    def _names(self, optimizer: Any) -> list[str]:
        """Return the parameters' names in the order in which torch numbers them."""
        known = {id(p): name for name, p in self.model.named_parameters()}
        return [known[id(p)] for group in optimizer.param_groups for p in group["params"]]
