"""Engine with nothing between the module and its optimizers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lt_core.hooks.table import method_of
from lt_core.optim.states import load_named_states, named_states
from lt_core.state.stage import STAGES
from lt_interface import MisconfigurationException, PlainPrecision, Plan, Precision, PreparesOptimizers, SideStream

__all__ = ["STEPS", "PlainEngine"]

STEPS = tuple(stage.step for stage in STAGES)


class PlainEngine:
    """Engine of one module with its optimizers in one process.

    Where the precision has nothing to do around a step, ``call`` holds the module's own
    bound methods and ``backward`` is the tensor's, so that no frame is added.

    Args:
        module: The module, its parameters final.
        optimizers: The optimizers, in the user's order.
        schedulers: The schedulers; a plain engine leaves them to the loop.
        precision: The number format.
        plan: What was decided.
        device: Where the module lies; the CPU if None.
        stream: The device's side stream, where it has one.
    """

    owns: frozenset[str] = frozenset()

    def __init__(
        self,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        schedulers: Sequence[Any],
        precision: Precision,
        plan: Plan,
        device: torch.device | None = None,
        stream: SideStream | None = None,
    ) -> None:
        self.model = module
        self.optimizers: Sequence[Optimizer] = list(optimizers)
        self.precision = precision
        self.call: Mapping[str, Callable[..., Any]] = _steps(module, precision)
        self.place: Callable[[Any], Any] | None = _mover(device, stream)
        self.window: Callable[[bool], AbstractContextManager[Any] | None] | None = None
        self.before_forward: Callable[[], None] | None = None
        self.boundary: Callable[[], None] | None = None
        if isinstance(precision, PreparesOptimizers):
            self.boundary = precision.prepare(self.optimizers)
        if not precision.scales:
            self.backward = Tensor.backward  # type: ignore[method-assign]
        if type(precision).step is PlainPrecision.step:
            self.update = self._plain_update  # type: ignore[method-assign]

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass of the scaled loss."""
        self.precision.scale(loss).backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def unscale(self, index: int) -> None:
        """Bring the gradients of optimizer ``index`` to their true size."""
        self.precision.unscale(self.optimizers[index])

    def clip(self, index: int, value: float, algorithm: str) -> Tensor | None:
        """Clip the gradients of optimizer ``index``.

        Returns:
            The total norm before clipping for ``"norm"``, None for ``"value"``.

        Raises:
            MisconfigurationException: If the algorithm is neither.
        """
        parameters = [p for group in self.optimizers[index].param_groups for p in group["params"]]
        if algorithm == "norm":
            return nn.utils.clip_grad_norm_(parameters, value)
        if algorithm == "value":
            nn.utils.clip_grad_value_(parameters, value)
            return None
        raise MisconfigurationException(
            f'gradient_clip_algorithm: this must be "norm" or "value". Got {algorithm!r}. Write "norm".'
        )

    def update(self, index: int, last: bool, closure: Callable[[], Any] | None = None, **kwargs: Any) -> bool:
        """Step optimizer ``index``; return False when the precision skipped it."""
        return self.precision.step(self.optimizers[index], closure, **kwargs)

    def _plain_update(self, index: int, last: bool, closure: Callable[[], Any] | None = None, **kwargs: Any) -> bool:
        """Step without asking a precision that has nothing to add: one frame less."""
        if closure is None:
            self.optimizers[index].step(**kwargs)
        else:
            self.optimizers[index].step(closure, **kwargs)
        return True

    def optimizer_states(self) -> list[dict[str, Any]]:
        """Return each optimizer's ``state_dict``, its parameters by name instead of by number."""
        return named_states(self.model, self.optimizers)

    def load_optimizer_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Take over states that ``optimizer_states`` returned, or torch's own numbered ones.

        Raises:
            CheckpointError: If they are of other optimizers or parameters.
        """
        load_named_states(self.model, self.optimizers, states)

    def close(self) -> None:
        """Leave the module as it is: the engine changed nothing of it."""


def _steps(module: nn.Module, precision: Precision) -> dict[str, Callable[..., Any]]:
    found = {name: step for name in STEPS if callable(step := method_of(module, name))}
    if precision.forward is None and precision.convert_output is None:
        return found
    return {name: _within(step, precision.forward, precision.convert_output) for name, step in found.items()}


def _within(
    step: Callable[..., Any],
    context: Callable[[], AbstractContextManager[Any]] | None,
    convert: Callable[[Any], Any] | None,
) -> Callable[..., Any]:
    """Return the step inside the context, its output converted."""
    if context is None:
        if convert is None:
            return step

        @functools.wraps(step)
        def converted(*args: Any, **kwargs: Any) -> Any:
            return convert(step(*args, **kwargs))

        return converted

    @functools.wraps(step)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with context():
            output = step(*args, **kwargs)
        return output if convert is None else convert(output)

    return inside


def _mover(device: torch.device | None, stream: SideStream | None) -> Callable[[Any], Any] | None:
    """Return what moves a batch to the device, or None on the CPU, where batches already are."""
    if stream is not None and device is not None:
        from lt_core.data.stager import Stager

        return Stager(stream, device)
    if device is None or device.type == "cpu":
        return None
    from lt_core.data.nested import move_to_device

    return functools.partial(move_to_device, device=device)
