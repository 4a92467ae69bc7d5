"""Precisions: the number formats in which a model computes, and the scaling of its loss."""

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
    """Number format of parameters and batches, and what the optimizer sees of it.

    ``forward`` and ``convert_output`` are None, and ``converts_batch`` is False, where there
    is nothing to do, so that the loop leaves them out instead of calling them. A precision must pickle.

    Attributes:
        name: The name users pass, such as ``"32-true"``.
        converts_batch: Whether ``convert_batch`` changes anything.

    Example:
        All in 64 bits, without a loss scale:

        >>> from contextlib import nullcontext
        >>> class Double:
        ...     name, converts_batch, forward, convert_output = "double", True, None, None
        ...     def init_context(self):
        ...         return nullcontext()
        ...     def convert(self, module):
        ...         return module.double()
        ...     def convert_batch(self, batch):
        ...         return [x.double() if x.is_floating_point() else x for x in batch]
        ...     def backward(self, loss, *args, **kwargs):
        ...         loss.backward(*args, **kwargs)
        ...     def unscale(self, optimizer):
        ...         pass
        ...     def step(self, optimizer, closure=None):
        ...         optimizer.step(closure)
        ...         return True
        ...     def state_dict(self):
        ...         return {}
        ...     def load_state_dict(self, state):
        ...         pass
        >>> isinstance(Double(), Precision)
        True
    """

    name: str
    converts_batch: bool

    @property
    def forward(self) -> Callable[[], AbstractContextManager[Any]] | None:
        """Return what makes a context for one call of a step or of forward, or None."""
        ...

    @property
    def convert_output(self) -> Callable[[Any], Any] | None:
        """Return what brings the output of a step into the right format, or None."""
        ...

    def init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which modules are constructed in the right format; it leaves no trace."""
        ...

    def convert(self, module: nn.Module) -> nn.Module:
        """Return a module with its parameters in the right format; `Strategy.shard` calls it once.

        Args:
            module: The module; its names, ties, frozen parameters and integer buffers stay as they are.
        """
        ...

    def convert_batch(self, batch: Any) -> Any:
        """Return a batch with its floating-point tensors in the right format.

        The core calls it before the batch moves to the device, where ``converts_batch`` is True.

        Args:
            batch: Tensors in any nesting; it belongs to the user and is left as it is.
        """
        ...

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass of a loss, scaled where the format needs it; gradients add up.

        Args:
            loss: A scalar that requires gradients.
            *args: Given on to ``Tensor.backward``.
            **kwargs: Given on to ``Tensor.backward``, such as ``retain_graph``.
        """
        ...

    def unscale(self, optimizer: Optimizer) -> None:
        """Bring the gradients back to their true size; a second call in the same step does nothing.

        Args:
            optimizer: Whose gradients.
        """
        ...

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> bool:
        """Step an optimizer, after unscaling its gradients if that was not done.

        Args:
            optimizer: The optimizer.
            closure: Computes loss and gradients anew and returns the loss, for optimizers such as LBFGS.

        Returns:
            False when the step was skipped because a gradient was inf or nan; the weights are then unchanged.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save, such as a loss scale; empty where there is none."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take over a saved state, so that training continues to the bit.

        Args:
            state: What ``state_dict`` returned, or an empty dict of a run without such a state.
        """
        ...
