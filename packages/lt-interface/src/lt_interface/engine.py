"""All that one training step calls, whatever carries the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lt_interface.state import Stateful

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

__all__ = ["Engine", "PreparesBackward", "SkipsBatches", "WeighsBatches", "decides_by_closure"]


def decides_by_closure(optimizer: Optimizer) -> bool:
    """Return whether an optimizer may call its closure as it likes, and decide by the loss that it returns.

    So do those that cannot do without one, as LBFGS, and all that take one and are not torch's, since nothing says
    what they do with it: SAM and its like call it twice. One that calls it once, before it steps, says so by an
    attribute, ``computes_loss_once = True``.

    Args:
        optimizer: The optimizer.

    Returns:
        False for those of torch that compute the loss once, if they are given a closure at all.

    Example:
        >>> class Twice:
        ...     def step(self, closure=None):
        ...         closure(), closure()
        >>> class Plain:
        ...     def step(self):
        ...         pass
        >>> decides_by_closure(Twice()), decides_by_closure(Plain())
        (True, False)
    """
    step = type(optimizer).step
    try:
        parameters = signature(step).parameters.values()
    except (TypeError, ValueError):
        return False
    torchs = str(getattr(step, "__module__", "")).startswith("torch.")
    known = torchs or getattr(optimizer, "computes_loss_once", False)
    return any(
        (p.kind is p.VAR_POSITIONAL and not known) or (p.name == "closure" and (p.default is p.empty or not known))
        for p in parameters
        if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)
    )


@runtime_checkable
class Engine(Protocol):
    """Pieces of a training step over a sharded module and its optimizers.

    `Strategy.engine` builds one once a run, and again when the set of trainable parameters, the user's optimizers or
    ``training_step`` change. The core reads the attributes once, when it builds the step. A window of batches is
    then, for an engine that owns nothing and without a closure::

        for i, batch in enumerate(window):
            with engine.window(last=i + 1 == len(window)):     # where it is not None
                engine.before_forward()                        # where it is not None; before the step of every loop
                loss = engine.call["training_step"](engine.place(batch), i) / len(window)
                if i == 0:
                    optimizer.zero_grad()                      # unless "zero_grad" in engine.owns
                engine.backward(loss)
            engine.boundary()                                  # where it is not None; after the step of every loop
        engine.unscale(0)            # where the precision scales and clipping or a hook follows, unless it is owned
        engine.clip(0, 1.0, "norm")  # where clipping is set, unless "clip" in engine.owns
        stepped = engine.update(0, last=True)

    The boundary of the window's last batch comes after the update. In every loop it comes before the schedulers and the
    hooks at the batch's end.

    Ranks that share each batch step alike: once the backward pass of a window's last batch has ended, each gradient is
    the mean over these ranks. The core has weighed their losses before, so that it is the mean over all samples. It
    exchanges neither parameters nor buffers: an engine keeps both the same on every rank, and gives an optimizer that
    decides by the loss of its closure, see `decides_by_closure`, the mean of that loss.

    Attributes:
        optimizers: The optimizers, in the user's order, perhaps wrapped; an ``index`` below counts them from 0. Users
            step and clear these, and hooks get them. Schedulers change the groups of the user's own optimizers, so
            wrapped ones must heed these.
        owns: What the engine does itself and the core leaves out of the step: any of ``"accumulate"`` (the loss is
            not divided, and ``update`` is called for each batch), ``"backward"`` (an overridden ``backward`` of the
            module is not called), ``"clip"`` (nor are overridden hooks of clipping), ``"zero_grad"``, ``"unscale"``,
            ``"schedule"`` (``update`` steps the schedulers that the engine was built with after each optimizer step).
        call: ``training_step``, ``validation_step``, ``test_step`` and ``predict_step`` as
            callables through whatever wraps the module; only those that the module has.
        place: Moves a batch to the device, or None where nothing needs to move.
        window: Makes the context around forward and backward of one batch from ``last``, which is False for a batch
            whose gradients are not exchanged yet; it may return None. None where no batch needs one.
        before_forward: Called before the step of every loop, or None.
        boundary: Called after the step of every loop, before the batch's last hooks; or None.
        model: The module; its weights are saved and loaded through `Strategy.weights`.

    Example:
        An engine of one process, as thin as it can be:

        >>> class ThinEngine:
        ...     owns, place, window, before_forward, boundary = frozenset(), None, None, None, None
        ...     def __init__(self, module, optimizers, schedulers, precision, plan):
        ...         self.model, self.optimizers, self.precision = module, list(optimizers), precision
        ...         self.call = {"training_step": module.training_step}
        ...     def backward(self, loss, *args, **kwargs):
        ...         self.precision.scale(loss).backward(*args, **kwargs)
        ...     def unscale(self, index):
        ...         self.precision.unscale(self.optimizers[index])
        ...     def clip(self, index, value, algorithm):
        ...         parameters = [p for group in self.optimizers[index].param_groups for p in group["params"]]
        ...         if algorithm == "norm":
        ...             return torch.nn.utils.clip_grad_norm_(parameters, value)
        ...         torch.nn.utils.clip_grad_value_(parameters, value)
        ...     def update(self, index, last, closure=None, **kwargs):
        ...         return self.precision.step(self.optimizers[index], closure, **kwargs)
        ...     def optimizer_states(self):
        ...         return [with_names(optimizer.state_dict(), self.model) for optimizer in self.optimizers]
        ...     def load_optimizer_states(self, states):
        ...         for optimizer, state in zip(self.optimizers, states, strict=True):
        ...             optimizer.load_state_dict(with_numbers(state, self.model))
        ...     def close(self):
        ...         pass
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
    window: Callable[[bool], AbstractContextManager[Any] | None] | None
    before_forward: Callable[[], None] | None
    boundary: Callable[[], None] | None
    model: Stateful

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass of a loss, scaled where the precision needs it; gradients add up.

        The core calls it after each ``training_step``, unless the module overrides ``backward``: that one then gets
        ``precision.scale(loss)``, after `PreparesBackward.prepare_backward` where the engine has it. A user calls it
        through ``manual_backward``.

        Args:
            loss: A scalar that requires gradients, already divided by the length of its window.
            *args: Given on to ``Tensor.backward``.
            **kwargs: Given on to ``Tensor.backward``, such as ``retain_graph``.
        """

    def unscale(self, index: int) -> None:
        """Bring the gradients of an optimizer to their true size, at most once a step.

        The core calls it before it or a hook of the user looks at gradients.

        Args:
            index: Which optimizer.
        """

    def clip(self, index: int, value: float, algorithm: str) -> Tensor | None:
        """Clip the gradients of an optimizer, over all ranks that hold parts of them.

        The core calls it after ``unscale`` and before ``update``, where a value above 0 is set.

        Args:
            index: Which optimizer.
            value: The largest norm, or the largest absolute value of an entry.
            algorithm: ``"norm"`` or ``"value"``.

        Returns:
            The total norm before clipping, a scalar, or None where it was not computed.

        Raises:
            MisconfigurationException: If the algorithm is neither.
        """

    def update(self, index: int, last: bool, closure: Callable[[], Any] | None = None, **kwargs: Any) -> bool:
        """Step an optimizer.

        The core calls it at the end of each window of accumulated batches; for an engine that owns ``"accumulate"``
        after the backward pass of each batch. Gradients are left as they are.

        Args:
            index: Which optimizer.
            last: Whether the batch is the last one of its window.
            closure: Computes loss and gradients anew and returns the loss, for optimizers such as LBFGS.
            **kwargs: What the user gave to ``optimizer.step``; given on to it.

        Returns:
            Whether the weights were updated: False inside a window, and for a step that was skipped because a gradient
            was inf or nan. The core then counts no step.
        """

    def optimizer_states(self) -> list[dict[str, Any]]:
        """Return each optimizer's ``state_dict``, its parameters by the user's names in place of numbers.

        The core calls it on every rank when a checkpoint is saved.
        """

    def load_optimizer_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Take over states that ``optimizer_states`` returned, perhaps with another number of ranks.

        Args:
            states: One state for each optimizer.

        Raises:
            CheckpointError: If they are of other parameters or of another number of optimizers.
        """

    def close(self) -> None:
        """Undo what the engine did to the module, such as hooks; called when another one takes its place.

        The core calls it too when the run ends, after `Strategy.release`. A second call does nothing.
        """


@runtime_checkable
class PreparesBackward(Protocol):
    """Engine that must hear of each backward pass before it begins, such as one that exchanges gradients meanwhile.

    Its ``backward`` does so itself. The core asks for it where the module overrides ``backward``, unless the engine
    owns the backward pass.

    Example:
        >>> class Listens:
        ...     def prepare_backward(self, loss):
        ...         print("gradients of", loss, "will come")
        >>> isinstance(Listens(), PreparesBackward)
        True
    """

    def prepare_backward(self, loss: Tensor) -> None:
        """Get ready for a backward pass.

        Args:
            loss: What it begins from, scaled where the precision scales.
        """


@runtime_checkable
class SkipsBatches(Protocol):
    """Engine whose rank may skip a batch, its forward pass too, while the other ranks train on theirs.

    The core asks for it where ranks share each batch and ``training_step`` returned None on one of them. Without it,
    and where the strategy's forward is collective, that is an error.

    Example:
        >>> class Whole:
        ...     parameters = [0.5, 1.5]
        ...     def zero_loss(self):
        ...         return sum(0.0 * p for p in self.parameters)
        >>> isinstance(Whole(), SkipsBatches), Whole().zero_loss()
        (True, 0.0)
    """

    def zero_loss(self) -> Tensor:
        """Return a loss that ``backward`` takes, whose gradients are zero for each parameter that requires one."""


@runtime_checkable
class WeighsBatches(Protocol):
    """Engine that must know, before each forward pass of training, what the batch on this rank counts.

    The core asks for it where ranks share each batch.

    Example:
        >>> class Whole:
        ...     def take_weight(self, weight):
        ...         print("of no account" if weight == 0 else weight)
        >>> isinstance(Whole(), WeighsBatches)
        True
        >>> Whole().take_weight(0.0)
        of no account
    """

    def take_weight(self, weight: float) -> None:
        """Take over the weight of the batch that comes next.

        Args:
            weight: Factor of this rank's mean loss in the mean over the ranks; 0 for a batch that only repeats samples,
                so that no rank has none.
        """
