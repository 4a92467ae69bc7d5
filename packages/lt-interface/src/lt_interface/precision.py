"""Precisions: the number formats in which a model computes, and the scaling of its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lt_interface.errors import MisconfigurationException, Problem

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from lt_interface.plan import Plan

__all__ = ["PlainPrecision", "Precision", "PreparesOptimizers", "TakesDevice"]

# PyTorch Lightning's names for what a precision overrides, and those of this interface.
_RENAMED = {
    "convert_module": "convert",
    "convert_input": "convert_batch",
    "tensor_init_context": "init_context",
    "module_init_context": "init_context",
    "forward_context": "forward",
}
# Those of its hooks that would be called with other arguments, or by others, and what to override in their place.
_INSTEAD = {
    "optimizer_step": "Override step(optimizer, closure, **kwargs), which returns whether a step was made.",
    "pre_backward": "Override scale(loss), which returns the loss that backward sees.",
    "connect": "Override prepare(optimizers).",
    **dict.fromkeys(("backward", "post_backward"), "Override the module's backward or on_after_backward."),
    **dict.fromkeys(
        ("clip_gradients", "clip_grad_by_norm", "clip_grad_by_value", "main_params"),
        "Override the module's configure_gradient_clipping.",
    ),
    **dict.fromkeys((f"{stage}_step_context" for stage in ("train", "val", "test", "predict")), "Override forward."),
}


@runtime_checkable
class Precision(Protocol):
    """Number format of parameters and batches, and what the optimizer sees of it.

    ``forward`` and ``convert_output`` are None, and ``converts_batch`` and ``scales`` are False, where there
    is nothing to do, so that the loop leaves them out instead of calling them. A precision must pickle.
    `PlainPrecision` has the methods that change nothing, to be derived from.

    Attributes:
        name: The name users pass, such as ``"32-true"``.
        converts_batch: Whether ``convert_batch`` changes anything.
        scales: Whether ``scale`` and ``unscale`` change anything.
        compute_dtype: Torch's format that layers compute in inside ``forward``; None for that of their parameters. A
            strategy that gathers parameters may gather them in it.
        reduce_dtype: Torch's format that a strategy exchanges gradients in where it casts them; None for their own.

    Example:
        All in 64 bits, without a loss scale; `PlainPrecision` has these no-ops already:

        >>> from contextlib import nullcontext
        >>> class Double:
        ...     name, converts_batch, scales, forward, convert_output = "double", True, False, None, None
        ...     compute_dtype = reduce_dtype = None
        ...     def problems(self, plan):
        ...         return []
        ...     def init_context(self):
        ...         return nullcontext()
        ...     def convert(self, module):
        ...         return module.double()
        ...     def convert_batch(self, batch):
        ...         return [x.double() if x.is_floating_point() else x for x in batch]
        ...     def scale(self, loss):
        ...         return loss
        ...     def unscale(self, optimizer):
        ...         pass
        ...     def step(self, optimizer, closure=None, **kwargs):
        ...         optimizer.step(closure, **kwargs)
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
    scales: bool
    compute_dtype: torch.dtype | None
    reduce_dtype: torch.dtype | None

    @property
    def forward(self) -> Callable[[], AbstractContextManager[Any]] | None:
        """Return what makes a context for one call of a step or of forward, or None."""

    @property
    def convert_output(self) -> Callable[[Any], Any] | None:
        """Return what brings the output of a step into the right format, or None."""

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Return what of a plan this precision cannot do; it touches no device.

        Args:
            plan: What was decided.

        Returns:
            The problems, all at once; empty if there is none.
        """

    def init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which modules are constructed in the right format; it leaves no trace."""

    def convert(self, module: nn.Module) -> nn.Module:
        """Bring a module's parameters into the right format, in place; `Strategy.shard` calls it once.

        Args:
            module: The module; its names, ties, frozen parameters and integer buffers stay as they are.

        Returns:
            The same module.
        """

    def convert_batch(self, batch: Any) -> Any:
        """Return a batch with its floating-point tensors in the right format.

        The core calls it before the batch moves to the device, where ``converts_batch`` is True.

        Args:
            batch: Tensors in any nesting; it belongs to the user and is left as it is.
        """

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss that the backward pass sees: multiplied by the loss scale, or as it is.

        Engines call it in ``backward``; the core calls it where the module overrides ``backward``.

        Args:
            loss: A scalar that requires gradients.
        """

    def unscale(self, optimizer: Optimizer) -> None:
        """Bring the gradients back to their true size; a second call in the same step does nothing.

        Args:
            optimizer: Whose gradients.
        """

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None, **kwargs: Any) -> bool:
        """Step an optimizer, after unscaling its gradients if that was not done.

        Args:
            optimizer: The optimizer.
            closure: Computes loss and gradients anew and returns the loss, for optimizers such as LBFGS.
            **kwargs: Given on to the optimizer's own ``step``.

        Returns:
            False when the step was skipped because a gradient was inf or nan; the weights are then unchanged.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save, such as a loss scale; empty where there is none."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take over a saved state, so that training continues to the bit.

        Args:
            state: What ``state_dict`` returned, or an empty dict of a run without such a state.
        """


@runtime_checkable
class PreparesOptimizers(Protocol):
    """Precision that looks at the optimizers before the first step, and acts after each batch.

    A loss scale that changes once a batch, whatever the number of optimizers, is made so.

    Example:
        >>> class Counting(PlainPrecision):
        ...     batches = 0
        ...     def prepare(self, optimizers):
        ...         return self.count if len(optimizers) > 1 else None
        ...     def count(self):
        ...         self.batches += 1
        >>> isinstance(Counting(), PreparesOptimizers), isinstance(PlainPrecision(), PreparesOptimizers)
        (True, False)
    """

    def prepare(self, optimizers: Sequence[Optimizer]) -> Callable[[], None] | None:
        """Take the optimizers of an engine that is being built.

        Args:
            optimizers: Those that the precision will be given to ``unscale`` and ``step``; none in evaluation.

        Returns:
            What the engine calls after each batch, or None.

        Raises:
            MisconfigurationException: If an optimizer cannot work in this precision.
        """


@runtime_checkable
class TakesDevice(Protocol):
    """Precision that computes differently on different kinds of devices.

    Where parameters lie does not show it: they may be on the CPU, or without values, while the run is on a card.

    Example:
        >>> class Tuned(PlainPrecision):
        ...     def take_device(self, device):
        ...         self.device = device
        >>> isinstance(Tuned(), TakesDevice), isinstance(PlainPrecision(), TakesDevice)
        (True, False)
    """

    def take_device(self, device: torch.device) -> None:
        """Take the device of this rank; the core calls it in each run after `Strategy.setup`, before all else.

        Args:
            device: The strategy's device.
        """


class PlainPrecision:
    """Precision that leaves everything as it is: the base of those that change a part of it.

    A subclass may use PyTorch Lightning's names for what it overrides and for what it calls of its base:
    ``convert_module``, ``convert_input``, ``convert_output``, ``forward_context``, ``module_init_context`` or
    ``tensor_init_context``, and ``precision`` for the name. A hook of its that has no counterpart is refused.

    Example:
        >>> class Quiet(PlainPrecision):
        ...     name = "quiet"
        >>> Quiet().convert_batch([1, 2]), Quiet().scale(0.5), Quiet().state_dict()
        ([1, 2], 0.5, {})
        >>> class Halved(Quiet):
        ...     def convert_input(self, data):
        ...         return [x / 2 for x in super().convert_input(data)]
        >>> Halved().converts_batch, Halved().convert_batch([1, 2]), Halved().precision
        (True, [0.5, 1.0], 'quiet')
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for kind in reversed(cls.__mro__):
            if kind is cls or not issubclass(kind, PlainPrecision):  # also a base that only brings overrides
                _link(kind, cls)

    name = "32-true"
    converts_batch = False
    scales = False
    compute_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = None
    forward: Callable[[], AbstractContextManager[Any]] | None = None
    convert_output: Callable[[Any], Any] | None = None

    @property
    def precision(self) -> str:
        """Return the name."""
        return self.name

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Return nothing: every plan will do."""
        return []

    def init_context(self) -> AbstractContextManager[Any]:
        """Return a context that changes nothing."""
        return nullcontext()

    def convert(self, module: nn.Module) -> nn.Module:
        """Return the module as it is."""
        return module

    def convert_batch(self, batch: Any) -> Any:
        """Return the batch as it is."""
        return batch

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss as it is."""
        return loss

    def unscale(self, optimizer: Optimizer) -> None:
        """Leave the gradients: they have their true size."""

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None, **kwargs: Any) -> bool:
        """Step the optimizer and return True."""
        if closure is not None:
            kwargs["closure"] = closure
        optimizer.step(**kwargs)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: there is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Accept a state of another precision, which has no meaning here."""


def _link(kind: type, precision: type[PlainPrecision]) -> None:
    """Give what a base of a precision itself defines its other name too, so that ``super()`` finds both.

    Raises:
        MisconfigurationException: If it defines a hook that has no counterpart.
    """
    own = dict(vars(kind))
    for hook, fix in _INSTEAD.items():
        if hook in own:
            rule = "this hook of a precision is not called here"
            raise MisconfigurationException(Problem(f"{kind.__name__}.{hook}", rule, fix=fix))
    if kind is precision and isinstance(own.get("precision"), str):
        precision.name = own["precision"]
        del precision.precision  # the base has a property of that name
    if "convert_input" in own:
        precision.converts_batch = True
    for theirs, ours in _RENAMED.items():
        if theirs in own:
            setattr(kind, ours, own[theirs])
        elif ours in own:
            setattr(kind, theirs, own[ours] if ours != "forward" else _context_of(own[ours]))


def _context_of(forward: Any) -> Callable[[Any], AbstractContextManager[Any]]:
    """Return the method that enters what a class has as ``forward``: a method, a property or None."""

    def forward_context(self: Any) -> AbstractContextManager[Any]:
        make = forward.__get__(self) if hasattr(forward, "__get__") else forward
        context: AbstractContextManager[Any] = nullcontext() if make is None else make()
        return context

    return forward_context


_link(PlainPrecision, PlainPrecision)
