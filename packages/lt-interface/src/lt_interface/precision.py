"""Say in which number formats a model computes and how its loss is scaled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

__all__ = ["Precision"]


@runtime_checkable
class Precision(Protocol):
    """Convert the module and the batches, and scale what the optimizer sees.

    ``forward`` and ``convert_output`` are None, and ``converts_batch`` is False, where there
    is nothing to do, so that the loop leaves them out instead of calling them.

    Attributes:
        name: The name users pass, such as ``"32-true"``.
        converts_batch: Whether ``convert_batch`` changes anything.
    """

    name: str
    converts_batch: bool

    @property
    def forward(self) -> Callable[[], AbstractContextManager[Any]] | None:
        """Make a context for one call of a step or of forward, or be None."""
        ...

    @property
    def convert_output(self) -> Callable[[Any], Any] | None:
        """Return what a step returned in the right format, or be None."""
        ...

    def init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which modules are constructed in the right format."""
        ...

    def convert(self, module: nn.Module) -> nn.Module:
        """Return the module with its parameters in the right format."""
        ...

    def convert_batch(self, batch: Any) -> Any:
        """Return the batch with its floating-point tensors in the right format."""
        ...

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass of ``loss``, scaled where the format needs it."""
        ...

    def unscale(self, optimizer: Optimizer) -> None:
        """Bring the gradients back to their true size, at most once a step."""
        ...

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> bool:
        """Step the optimizer; return False when the step was skipped for inf or nan."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save, such as a loss scale; empty where there is none."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take over a saved state."""
        ...
