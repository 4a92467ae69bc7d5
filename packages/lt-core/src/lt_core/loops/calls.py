"""Calls that a step is made of, and the errors for what a user's step returned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lt_core.data.nested import apply_to_collection
from lt_core.hooks.table import bind, overrides
from lt_core.metrics.objects import untouched
from lt_core.metrics.slot import (
    AFTER_BACKWARD,
    BACKWARD,
    BEFORE_BACKWARD,
    BEFORE_STEP,
    BEFORE_ZERO_GRAD,
    CLIP,
    TRAIN_STEP,
    ZERO_GRAD,
)
from lt_core.notices import warn
from lt_core.state.stage import TRAIN, Stage
from lt_interface import PreparesBackward, SkipsBatches, WeighsBatches
from lt_interface.errors import ConfigError, MisconfigurationException, Problem

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = [
    "Pieces",
    "Step",
    "backward_of",
    "between",
    "bound_step",
    "detached",
    "explain_backward",
    "guarded",
    "loss_of",
    "manual_backward_of",
    "outputs_of",
    "rescale_short_window",
    "warn_owned",
]

Step = Callable[[Any, int], Any]


def bound_step(run: Run, stage: Stage, args: tuple[str, ...]) -> Callable[..., Any]:
    """Return the engine's step of a stage so that it takes ``args`` by position.

    Raises:
        ConfigError: If the user's signature takes other arguments.
    """
    bound = bind(run.engine.call[stage.step], args)
    if bound is None:
        where = f"{type(run.module).__name__}.{stage.step}"
        rule = "the trainer cannot call this step with its arguments"
        raise ConfigError(Problem(where, rule, fix=f"Write: def {stage.step}(self, {', '.join(args[:2])})"))
    return run.timed(bound, stage.step)


def loss_of(run: Run, output: Any, index: int) -> Tensor | None:
    """Return the loss in what training_step returned; None skips the backward pass where no ranks share batches.

    Raises:
        MisconfigurationException: If there is no loss in it.
    """
    where = f"{type(run.module).__name__}.training_step, batch {index}"
    if output is None:
        return _skipped(run, where)
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        run.metrics.train.add_returned(output)
        if "loss" not in output:
            raise MisconfigurationException(
                Problem(where, 'a dict that is returned must have the key "loss"', f"keys {list(output)}", "Add it.")
            )
        loss: Tensor | None = output["loss"]
        return loss_of(run, loss, index)
    raise MisconfigurationException(
        Problem(
            where,
            'it must return a loss tensor, a dict with the key "loss", or None',
            type(output).__name__,
            "Return the loss.",
        )
    )


def _skipped(run: Run, where: str) -> Tensor | None:
    """Return what stands for the loss of a batch that training_step skipped: zero, for ranks that share batches.

    Raises:
        MisconfigurationException: If the other ranks would wait for this one's forward or backward pass.
    """
    shared = run.world.data_size > 1 and bool(run.optimizers)  # without one nothing is exchanged
    loss = _zero_loss(run, where) if shared else None
    if run.loop.first_time("none"):
        what = "counts as zero in the mean over the ranks" if shared else "has no backward pass"
        warn(f"{where}: returned None, so this batch {what}.")
    return loss


def _zero_loss(run: Run, where: str) -> Tensor:
    if run.strategy.collective_forward or not isinstance(run.engine, SkipsBatches):
        rule = f"under strategy {run.plan.strategy!r} every rank must return a loss, since the ranks compute together"
        fix = "Compute the loss of this batch too, and return 0 * loss."
        raise MisconfigurationException(Problem(where, rule, "None", fix))
    return run.engine.zero_loss()


def explain_backward(run: Run, loss: Tensor, index: int, error: RuntimeError) -> Exception:
    """Return a clear error for a backward pass that failed because of the loss itself, else the error."""
    where = f"{type(run.module).__name__}.training_step, batch {index}"
    if loss.numel() != 1:
        fix = "Reduce it, for example with loss.mean()."
        return MisconfigurationException(Problem(where, "the loss must be a scalar", f"shape {tuple(loss.shape)}", fix))
    if not loss.requires_grad:
        frozen = not any(p.requires_grad for p in run.module.parameters())
        fix = (
            "All parameters are frozen: unfreeze some."
            if frozen
            else "Compute it from the model's output, without detach(), .item() or torch.no_grad()."
        )
        return MisconfigurationException(
            Problem(where, "the loss must depend on parameters that require grad", fix=fix)
        )
    return error


def outputs_of(output: Any, loss: Tensor | None, wanted: bool) -> Any:
    """Return what on_train_batch_end gets: detached, the loss as it was given to backward."""
    if not wanted:
        return None
    if loss is None or output is None:
        return {}
    if isinstance(output, Tensor):
        return {"loss": loss.detach()}
    return {k: loss.detach() if k == "loss" else detached(v) for k, v in output.items()}


def detached(value: Any) -> Any:
    """Return a value with its tensors out of the graph."""
    return apply_to_collection(value, Tensor, Tensor.detach)


def backward_of(run: Run) -> Callable[..., Any]:
    """Return what runs the backward pass of a loss: the engine's, or the module's own with the loss scaled."""
    module, engine = run.module, run.engine
    if not overrides(module, "backward") or "backward" in engine.owns:
        if run.fits and overrides(module, "backward"):
            warn_owned(run, "backward", "runs the backward pass")
        return run.timed(engine.backward, "backward")
    scale = run.precision.scale if run.precision.scales else None
    prepare = engine.prepare_backward if isinstance(engine, PreparesBackward) else None

    def overridden(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if scale is not None:
            loss = scale(loss)
        if prepare is not None:
            prepare(loss)
        outer = store.scope
        store.scope = BACKWARD if outer == TRAIN_STEP else outer
        module.backward(loss, *args, **kwargs)
        store.scope = outer

    store = run.metrics.train
    return run.timed(overridden, "backward")


def warn_owned(run: Run, name: str, does: str) -> None:
    """Warn once that a method of the module is not called, since the engine does its work.

    Args:
        run: The run.
        name: The method's name.
        does: What the engine does.
    """
    if run.loop.first_time(name):
        who = f"{type(run.module).__name__}.{name}"
        warn(f"{who}: the engine of strategy {run.plan.strategy!r} {does} itself, so this override is not called.")


def manual_backward_of(run: Run) -> Callable[..., None]:
    """Return what ``module.manual_backward`` runs: hooks, and the backward pass with this rank's share of the batch."""
    backward, feeds = backward_of(run), run.feeds.made if run.world.data_size > 1 else {}

    def manual_backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        feed = feeds.get(TRAIN.word)
        if feed is not None and feed.weight != 1.0:
            loss = loss * feed.weight
        run.hooks.fire("on_before_backward", loss)
        backward(loss, *args, **kwargs)
        run.hooks.fire("on_after_backward")

    return manual_backward


class Pieces:
    """Calls that a step is made of, found once; None where there is nothing to do.

    Attributes:
        optimizer: The optimizer of automatic optimization; None without one.
        owned: Whether the engine accumulates by itself, so that each batch goes to its ``update``.
        around: Makes the engine's context around forward and backward from whether the batch closes its window.
        training_step: The user's, behind the engine's call before each step and the check for finite losses.
        unsized: Whether the last window may turn out to be short, so that its gradients are rescaled.
        shared: Whether ranks share each global batch, so that a rank's loss counts by its samples.
    """

    def __init__(self, run: Run) -> None:
        module, engine, trainer = run.module, run.engine, run.trainer
        self.run = run
        self.owned = "accumulate" in engine.owns
        self.around = engine.window
        self.optimizer: Any = engine.optimizers[0] if run.optimizers and module.automatic_optimization else None
        self.shared = run.world.data_size > 1
        self.unsized = not run.feed.exact and not self.owned
        bound = guarded(run, bound_step(run, TRAIN, TRAIN.args))
        self.training_step = between(engine.before_forward, _with_shadows(run, bound) if self.shared else bound)
        hooks, self.store = run.hooks, run.metrics.train
        self.before_zero_grad: tuple[Callable[..., Any], ...] = hooks.on_before_zero_grad  # type: ignore[attr-defined]
        self.before_backward: tuple[Callable[..., Any], ...] = hooks.on_before_backward  # type: ignore[attr-defined]
        self.after_backward: tuple[Callable[..., Any], ...] = hooks.on_after_backward  # type: ignore[attr-defined]
        self.before_step: tuple[Callable[..., Any], ...] = hooks.on_before_optimizer_step  # type: ignore[attr-defined]
        self.update: Callable[..., bool] = run.timed(engine.update, "optimizer_step")
        self.wants_outputs = bool(hooks.on_train_batch_end)  # type: ignore[attr-defined]
        # The optimizer's own method where nothing stands before it, so that the straight step calls it at once.
        own_zero_grad = overrides(module, "optimizer_zero_grad")
        self.plain_zero_grad: Callable[[], Any] | None = None
        if self.optimizer is not None and not own_zero_grad and "zero_grad" not in engine.owns:
            self.plain_zero_grad = self.optimizer.zero_grad
        self.zero_grad: Callable[[int], Any] = _zero_grad(run, self.optimizer, own_zero_grad)
        self.backward = backward_of(run)
        value, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm or "norm"
        self.clip: Callable[[], Any] | None = None
        own = [name for name in ("configure_gradient_clipping", "clip_gradients") if overrides(module, name)]
        if "clip" in engine.owns:
            if own:
                warn_owned(run, own[0], "clips the gradients")
        elif own:
            self.clip = run.hook(partial(self._own_clip, value, algorithm), module, "configure_gradient_clipping")
        elif value and value > 0:
            self.clip = run.timed(lambda: engine.clip(0, float(value), algorithm), "clip_gradients")
        # Where nobody looks at gradients the precision unscales by itself, a fused optimizer in its own kernel.
        looks = bool(self.before_step) or self.clip is not None
        scaled = looks and run.precision.scales and "unscale" not in engine.owns
        self.unscale: Callable[[int], None] | None = engine.unscale if scaled else None

    def _own_clip(self, value: Any, algorithm: str) -> None:
        """Call the module's clipping; what it logs is logged there."""
        self.store.scope = CLIP
        self.run.module.configure_gradient_clipping(self.optimizer, value, algorithm)
        self.store.scope = TRAIN_STEP

    def inside(self, last: bool) -> AbstractContextManager[Any]:
        """Return the context around forward and backward of one batch.

        Args:
            last: Whether the batch closes its window, so that ranks exchange gradients.
        """
        return (self.around(last) if self.around is not None else None) or nullcontext()

    def forward_backward(self, batch: Any, i: int, window: tuple[int, bool, bool]) -> tuple[Any, Tensor | None]:
        """Run one batch up to the optimizer: what every form of the step is made of.

        The straight step has the same lines in its own body, to save the frames; a test compares the two.

        Args:
            batch: The batch, on the device.
            i: The batch's index.
            window: The window's length, and whether the batch opens and closes it.

        Returns:
            What training_step returned, and what `backward_of` returned for it.
        """
        with self.inside(window[2]):
            output = self.training_step(batch, i)
            return output, self.backward_of(output, i, window)

    def backward_of(self, output: Any, i: int, window: tuple[int, bool, bool]) -> Tensor | None:
        """Run what lies between training_step and the optimizer, with its hooks.

        Args:
            output: What training_step returned.
            i: The batch's index.
            window: The window's length, and whether the batch opens and closes it.

        Returns:
            The loss whose gradients were added: the batch's share of the window's. None for a skipped batch.
        """
        length, first, _ = window
        run, store = self.run, self.store
        loss = output if isinstance(output, Tensor) else loss_of(run, output, i)
        if loss is not None and length != 1 and not self.owned:
            loss = loss / length
        if self.shared and loss is not None and (weight := run.feed.weight) != 1.0:
            loss = loss * weight
        if first:
            for f in self.before_zero_grad:
                store.scope = BEFORE_ZERO_GRAD
                f(self.optimizer)
                store.scope = TRAIN_STEP
            self.zero_grad(i)
        if loss is not None:
            for f in self.before_backward:
                store.scope = BEFORE_BACKWARD
                f(loss)
                store.scope = TRAIN_STEP
            if self.optimizer is not None or loss.requires_grad:
                try:
                    self.backward(loss)
                except RuntimeError as error:
                    raise explain_backward(run, loss, i, error) from error
            for f in self.after_backward:
                store.scope = AFTER_BACKWARD
                f()
                store.scope = TRAIN_STEP
        return loss

    def exchange(self) -> None:
        """Let the ranks exchange what their open windows have of the gradients.

        Raises:
            MisconfigurationException: If they exchange nothing without a loss.
        """
        if self.shared:
            loss = _zero_loss(self.run, f"{type(self.run.module).__name__}.on_train_batch_start, -1 inside a window")
            with self.inside(True):
                self.backward(loss)

    def before_update(self) -> None:
        """Unscale, run the hooks before the step, and clip."""
        if self.unscale is not None:
            self.unscale(0)
        for f in self.before_step:
            self.store.scope = BEFORE_STEP
            f(self.optimizer)
            self.store.scope = TRAIN_STEP
        if self.clip is not None:
            self.clip()


def _zero_grad(run: Run, optimizer: Any, overridden: bool) -> Callable[[int], Any]:
    if optimizer is None or "zero_grad" in run.engine.owns:
        return lambda i: None
    if overridden:
        module, progress, store = run.module, run.progress, run.metrics.train

        def own(i: int) -> None:
            store.scope = ZERO_GRAD
            module.optimizer_zero_grad(progress.epoch, i, optimizer)
            store.scope = TRAIN_STEP

        return run.hook(own, module, "optimizer_zero_grad")
    return lambda i: optimizer.zero_grad()


def between(
    first: Callable[[], Any] | None, step: Callable[..., Any], last: Callable[[], Any] | None = None
) -> Callable[..., Any]:
    """Return the step between two calls without arguments, or the step alone where there are none."""
    if first is None and last is None:
        return step

    def all_three(*args: Any) -> Any:
        if first is not None:
            first()
        output = step(*args)
        if last is not None:
            last()
        return output

    return all_three


def _with_shadows(run: Run, training_step: Step) -> Step:
    """Return the step so that a batch that only repeats samples, so that no rank has fewer, leaves no trace."""
    weigh: Callable[[float], Any] = run.engine.take_weight if isinstance(run.engine, WeighsBatches) else float

    def step(batch: Any, i: int) -> Any:
        weight = run.feed.weight
        weigh(weight)
        if weight:
            return training_step(batch, i)
        run.metrics.train.size = 0  # the weight of what hooks log after it
        with run.metrics.train.mute(), untouched(run.module):
            return training_step(batch, i)

    return step


def guarded(run: Run, training_step: Step) -> Step:
    """Return the step with a check for a loss that is not finite, if detect_anomaly asks for it."""
    if not run.trainer.detect_anomaly:
        return training_step
    from lt_core.loops.anomaly import raise_for_loss

    def checked(batch: Any, i: int) -> Any:
        output = training_step(batch, i)
        loss = output["loss"] if isinstance(output, Mapping) and "loss" in output else output
        if isinstance(loss, Tensor) and not bool(torch.isfinite(loss).all()):
            raise_for_loss(run, training_step, batch, i, loss)
        return output

    return checked


def rescale_short_window(run: Run, index: int, length: int) -> float:
    """Multiply the gradients of a window that ended early, so that it counts by its true length; return the factor."""
    factor = length / (index % run.plan.accumulate + 1)
    if factor != 1.0:
        for group in run.engine.optimizers[0].param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
    return factor
