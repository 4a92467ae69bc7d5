"""Name all that one training step calls, whatever carries the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lt_interface.state import Stateful

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

__all__ = ["Engine"]


@runtime_checkable
class Engine(Protocol):
    """Run the pieces of a step.

    Attributes:
        optimizers: The optimizers, in the user's order.
        owns: What the engine does itself and the core leaves out of the step: any of
            ``"accumulate"``, ``"clip"``, ``"zero_grad"``, ``"unscale"``, ``"schedule"``.
        call: ``training_step``, ``validation_step``, ``test_step`` and ``predict_step`` as
            callables through whatever wraps the module; only those that the module has.
        place: Moves a batch to the device, or None where nothing needs to move.
        accumulate: Makes a context for a batch that does not step (no gradient exchange),
            or None.
        boundary: Called once a batch after the step, or None.
        model: The weights, by the user's own names.
    """

    optimizers: Sequence[Optimizer]
    owns: frozenset[str]
    call: Mapping[str, Callable[..., Any]]
    place: Callable[[Any], Any] | None
    accumulate: Callable[[], AbstractContextManager[Any]] | None
    boundary: Callable[[], None] | None
    model: Stateful

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass of ``loss``."""
        ...

    def unscale(self, index: int) -> None:
        """Bring the gradients of optimizer ``index`` to their true size."""
        ...

    def clip(self, index: int, value: float, algorithm: str) -> Tensor | None:
        """Clip the gradients of optimizer ``index``; return their norm before, if computed."""
        ...

    def step(self, index: int, closure: Callable[[], Any] | None = None) -> bool:
        """Step optimizer ``index``; return False when the step was skipped for inf or nan."""
        ...

    def optimizer_states(self) -> list[dict[str, Any]]:
        """Return each optimizer's state, its parameters by their global names."""
        ...

    def load_optimizer_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Take over states that ``optimizer_states`` returned."""
        ...
