"""All that one training step calls, whatever carries the model."""

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
    """Pieces of a training step over a sharded module and its optimizers.

    `Strategy.engine` builds one once a run, and again when the user exchanges optimizers or ``training_step``.
    The core reads the attributes once, when it builds the step; a step without a closure is then::

        loss = engine.call["training_step"](engine.place(batch), batch_idx)
        optimizer.zero_grad()        # unless "zero_grad" in engine.owns
        engine.backward(loss)
        engine.unscale(0)            # unless "unscale" in engine.owns
        engine.clip(0, 1.0, "norm")  # unless "clip" in engine.owns; where clipping is set
        stepped = engine.step(0)
        engine.boundary()            # where it is not None

    Attributes:
        optimizers: The optimizers, in the user's order; an ``index`` below counts them from 0.
        owns: What the engine does itself and the core leaves out of the step: any of
            ``"accumulate"``, ``"clip"``, ``"zero_grad"``, ``"unscale"``, ``"schedule"``.
        call: ``training_step``, ``validation_step``, ``test_step`` and ``predict_step`` as
            callables through whatever wraps the module; only those that the module has.
        place: Moves a batch to the device, or None where nothing needs to move.
        accumulate: Makes a context for a batch that does not step (no gradient exchange),
            or None.
        boundary: Called once a batch after the step, or None.
        model: The weights, by the user's own names.

    Example:
        An engine of one process, as thin as it can be:

        >>> class ThinEngine:
        ...     owns, place, accumulate, boundary = frozenset(), None, None, None
        ...     def __init__(self, module, optimizers, schedulers, precision, plan):
        ...         self.model, self.optimizers, self.precision = module, list(optimizers), precision
        ...         self.call = {"training_step": module.training_step}
        ...     def backward(self, loss, *args, **kwargs):
        ...         self.precision.backward(loss, *args, **kwargs)
        ...     def unscale(self, index):
        ...         self.precision.unscale(self.optimizers[index])
        ...     def clip(self, index, value, algorithm):
        ...         parameters = [p for group in self.optimizers[index].param_groups for p in group["params"]]
        ...         if algorithm == "norm":
        ...             return torch.nn.utils.clip_grad_norm_(parameters, value)
        ...         torch.nn.utils.clip_grad_value_(parameters, value)
        ...     def step(self, index, closure=None):
        ...         return self.precision.step(self.optimizers[index], closure)
        ...     def optimizer_states(self):
        ...         return [with_names(optimizer.state_dict(), self.model) for optimizer in self.optimizers]
        ...     def load_optimizer_states(self, states):
        ...         for optimizer, state in zip(self.optimizers, states, strict=True):
        ...             optimizer.load_state_dict(with_numbers(state, self.model))
        >>> class Net:
        ...     def training_step(self, batch, batch_idx):
        ...         return batch
        >>> isinstance(ThinEngine(Net(), [], [], None, None), Engine)
        True
    """

    optimizers: Sequence[Optimizer]
    owns: frozenset[str]
    call: Mapping[str, Callable[..., Any]]
    place: Callable[[Any], Any] | None
    accumulate: Callable[[], AbstractContextManager[Any]] | None
    boundary: Callable[[], None] | None
    model: Stateful

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass of a loss, scaled where the precision needs it; gradients add up.

        The core calls it after each ``training_step``; a user calls it through ``manual_backward``.

        Args:
            loss: A scalar that requires gradients, already divided by the length of its window.
            *args: Given on to ``Tensor.backward``.
            **kwargs: Given on to ``Tensor.backward``, such as ``retain_graph``.
        """
        ...

    def unscale(self, index: int) -> None:
        """Bring the gradients of an optimizer to their true size, at most once a step.

        The core calls it before it or a hook of the user looks at gradients.

        Args:
            index: Which optimizer.
        """
        ...

    def clip(self, index: int, value: float, algorithm: str) -> Tensor | None:
        """Clip the gradients of an optimizer, over all ranks that hold parts of them.

        The core calls it after ``unscale`` and before ``step``, where a value above 0 is set.

        Args:
            index: Which optimizer.
            value: The largest norm, or the largest absolute value of an entry.
            algorithm: ``"norm"`` or ``"value"``.

        Returns:
            The total norm before clipping, a scalar, or None where it was not computed.

        Raises:
            MisconfigurationException: If the algorithm is neither.
        """
        ...

    def step(self, index: int, closure: Callable[[], Any] | None = None) -> bool:
        """Step an optimizer.

        The core calls it at the end of each window of accumulated batches; gradients are left as they are.

        Args:
            index: Which optimizer.
            closure: Computes loss and gradients anew and returns the loss, for optimizers such as LBFGS.

        Returns:
            False when the step was skipped because a gradient was inf or nan; the core then counts no step.
        """
        ...

    def optimizer_states(self) -> list[dict[str, Any]]:
        """Return each optimizer's ``state_dict``, its parameters by the user's names in place of numbers.

        The core calls it on every rank when a checkpoint is saved.
        """
        ...

    def load_optimizer_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Take over states that ``optimizer_states`` returned, perhaps with another number of ranks.

        Args:
            states: One state for each optimizer.

        Raises:
            CheckpointError: If they are of other parameters or of another number of optimizers.
        """
        ...
