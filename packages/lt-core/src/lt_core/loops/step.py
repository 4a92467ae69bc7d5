"""Build the step once: a straight line for ordinary optimizers, a closure for those that need one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lt_core.hooks import bind, overrides
from lt_core.notices import warn
from lt_core.optimizers import needs_closure
from lt_interface.errors import MisconfigurationException, Problem

if TYPE_CHECKING:
    from lt_core.run import Run

__all__ = ["build_step", "loss_of"]

Step = Callable[[Any, int], Any]


def build_step(run: Run) -> Step:
    """Return ``step(batch, batch_idx) -> outputs`` for the run as it is now.

    The outputs are what ``on_train_batch_end`` gets, or None where nobody asks.
    """
    from lt_core.loops.closure import closure_step
    from lt_core.module import LightningModule

    if not run.module.automatic_optimization:
        step = _manual_step(run)
    elif not run.optimizers:
        step = _without_optimizer(run)
    elif overrides(run.module, "optimizer_step", LightningModule) or needs_closure(run.optimizers[0]):
        step = closure_step(run)
    elif run.plan.accumulate == 1:
        step = _straight_step(run)
    else:
        step = _accumulating_step(run)
    boundary = run.engine.boundary
    if boundary is None:
        return step

    def with_boundary(batch: Any, i: int) -> Any:
        output = step(batch, i)
        boundary()
        return output

    return with_boundary


def bound_step(run: Run, name: str, args: tuple[str, ...]) -> Callable[..., Any]:
    """Return the engine's step of that name so that it takes ``args`` by position.

    Raises:
        MisconfigurationException: If the user's signature takes other arguments.
    """
    call = run.engine.call[name]
    bound = bind(call, args)
    if bound is None:
        raise MisconfigurationException(
            str(
                Problem(
                    f"{type(run.module).__name__}.{name}",
                    "the trainer can not call this step with its arguments",
                    fix=f"Write: def {name}(self, {', '.join(args)})",
                )
            )
        )
    return bound


def loss_of(run: Run, output: Any, index: int) -> Tensor | None:
    """Return the loss in what training_step returned; None skips the backward pass.

    Raises:
        MisconfigurationException: If there is no loss in it.
    """
    where = f"{type(run.module).__name__}.training_step, batch {index}"
    if output is None:
        if run.world.size > 1:
            raise MisconfigurationException(
                f"{where}: returning None to skip a batch works in one process only. Got {run.world.size} processes. "
                "Return a loss of zero instead."
            )
        if not run.warned_none:
            run.warned_none = True
            warn(f"{where}: returned None, so this batch has no backward pass.")
        return None
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        run.train_metrics.add_returned(output)
        if "loss" not in output:
            raise MisconfigurationException(
                str(
                    Problem(
                        where, 'a dict that is returned must have the key "loss"', f"keys {list(output)}", "Add it."
                    )
                )
            )
        loss: Tensor | None = output["loss"]
        return loss_of(run, loss, index)
    raise MisconfigurationException(
        str(
            Problem(
                where,
                'it must return a loss tensor, a dict with the key "loss", or None',
                type(output).__name__,
                "Return the loss.",
            )
        )
    )


def explain_backward(run: Run, loss: Tensor, index: int, error: RuntimeError) -> Exception:
    """Return a clear error for a backward pass that failed because of the loss itself, else the error."""
    where = f"{type(run.module).__name__}.training_step, batch {index}"
    if loss.numel() != 1:
        fix = "Reduce it, for example with loss.mean()."
        return MisconfigurationException(
            str(Problem(where, "the loss must be a scalar", f"shape {tuple(loss.shape)}", fix))
        )
    if not loss.requires_grad:
        frozen = not any(p.requires_grad for p in run.module.parameters())
        fix = (
            "All parameters are frozen: unfreeze some."
            if frozen
            else "Compute it from the model's output, without detach(), .item() or torch.no_grad()."
        )
        return MisconfigurationException(
            str(Problem(where, "the loss must depend on parameters that require grad", fix=fix))
        )
    return error


def outputs_of(output: Any, loss: Tensor | None, wanted: bool) -> Any:
    """Return what on_train_batch_end gets: detached, the loss as it was given to backward."""
    if not wanted:
        return None
    if loss is None:
        return {}
    if isinstance(output, Tensor):
        return {"loss": loss.detach()}
    return {k: loss.detach() if k == "loss" else _detached(v) for k, v in output.items()}


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {k: _detached(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_detached(v) for v in value]
    return value


class Pieces:
    """Gather, once, the calls that a step is made of; None where there is nothing to do."""

    def __init__(self, run: Run) -> None:
        from lt_core.module import LightningModule

        module, engine, trainer = run.module, run.engine, run.trainer
        self.optimizer = run.optimizers[0]
        self.training_step = guarded(run, bound_step(run, "training_step", ("batch", "batch_idx")))
        hooks = run.hooks
        self.before_zero_grad: tuple[Callable[..., Any], ...] = hooks.on_before_zero_grad  # type: ignore[attr-defined]
        self.before_backward: tuple[Callable[..., Any], ...] = hooks.on_before_backward  # type: ignore[attr-defined]
        self.after_backward: tuple[Callable[..., Any], ...] = hooks.on_after_backward  # type: ignore[attr-defined]
        self.before_step: tuple[Callable[..., Any], ...] = hooks.on_before_optimizer_step  # type: ignore[attr-defined]
        self.wants_outputs = bool(hooks.on_train_batch_end)  # type: ignore[attr-defined]
        self.zero_grad: Callable[[int], Any] = _zero_grad(run, self.optimizer)
        own_backward = overrides(module, "backward", LightningModule)
        self.backward: Callable[[Tensor], Any] = module.backward if own_backward else engine.backward
        scales = getattr(
            run.precision, "scales_gradients", type(run.precision).__module__ != "lt_core.builtin.precision"
        )
        self.unscale = engine.unscale if scales and "unscale" not in engine.owns else None
        value, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm or "norm"
        if overrides(module, "configure_gradient_clipping", LightningModule) or overrides(
            module, "clip_gradients", LightningModule
        ):
            self.clip: Callable[[], Any] | None = lambda: module.configure_gradient_clipping(
                self.optimizer, value, algorithm
            )
        elif value and value > 0 and "clip" not in engine.owns:
            self.clip = lambda: engine.clip(0, float(value), algorithm)
        else:
            self.clip = None

    def before_update(self) -> None:
        """Unscale, run the hooks before the step, and clip."""
        if self.unscale is not None:
            self.unscale(0)
        for f in self.before_step:
            f(self.optimizer)
        if self.clip is not None:
            self.clip()


def _zero_grad(run: Run, optimizer: Any) -> Callable[[int], Any]:
    from lt_core.module import LightningModule

    if overrides(run.module, "optimizer_zero_grad", LightningModule):
        module, progress = run.module, run.progress
        return lambda i: module.optimizer_zero_grad(progress.epoch, i, optimizer)
    if "zero_grad" in run.engine.owns:
        return lambda i: None
    return lambda i: optimizer.zero_grad()


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


def _straight_step(run: Run) -> Step:
    p = Pieces(run)
    progress, engine_step, optimizer = run.progress, run.engine.step, p.optimizer
    training_step, backward, zero_grad = p.training_step, p.backward, p.zero_grad
    before_zero_grad, before_backward, after_backward = p.before_zero_grad, p.before_backward, p.after_backward
    before_step, unscale, clip, wants_outputs = p.before_step, p.unscale, p.clip, p.wants_outputs
    plain_zero_grad = optimizer.zero_grad if type(zero_grad).__name__ == "function" and _is_plain(run) else None

    def step(batch: Any, i: int) -> Any:
        output = training_step(batch, i)
        loss = output if isinstance(output, Tensor) else loss_of(run, output, i)
        for f in before_zero_grad:
            f(optimizer)
        if plain_zero_grad is not None:
            plain_zero_grad()
        else:
            zero_grad(i)
        if loss is not None:
            for f in before_backward:
                f(loss)
            try:
                backward(loss)
            except RuntimeError as error:
                raise explain_backward(run, loss, i, error) from error
            for f in after_backward:
                f()
        if unscale is not None:
            unscale(0)
        for f in before_step:
            f(optimizer)
        if clip is not None:
            clip()
        if engine_step(0):
            progress.step += 1
        if not wants_outputs:
            return None
        return {"loss": loss.detach()} if loss is output and loss is not None else outputs_of(output, loss, True)

    return step


def _is_plain(run: Run) -> bool:
    """Return whether clearing gradients is the optimizer's own method and nothing else."""
    from lt_core.module import LightningModule

    return not overrides(run.module, "optimizer_zero_grad", LightningModule) and "zero_grad" not in run.engine.owns


def _accumulating_step(run: Run) -> Step:
    p = Pieces(run)
    progress, engine = run.progress, run.engine
    no_sync = engine.accumulate or nullcontext
    unsized = run.feed.num_batches == float("inf")
    owns = "accumulate" in engine.owns

    def step(batch: Any, i: int) -> Any:
        length, first, last = run.window(i)
        output = p.training_step(batch, i)
        loss = output if isinstance(output, Tensor) else loss_of(run, output, i)
        if loss is not None and not owns:
            loss = loss / length
        if first:
            for f in p.before_zero_grad:
                f(p.optimizer)
            p.zero_grad(i)
        if loss is not None:
            for f in p.before_backward:
                f(loss)
            with nullcontext() if last else no_sync():
                try:
                    p.backward(loss)
                except RuntimeError as error:
                    raise explain_backward(run, loss, i, error) from error
            for f in p.after_backward:
                f()
        if last:
            if unsized:
                rescale_short_window(run, i, length)
            p.before_update()
            if engine.step(0):
                progress.step += 1
        return outputs_of(output, loss, p.wants_outputs)

    return step


def rescale_short_window(run: Run, index: int, length: int) -> float:
    """Multiply the gradients of a window that ended early, so that it counts by its true length; return the factor."""
    factor = length / (index % length + 1)
    if factor != 1.0:
        for group in run.optimizers[0].param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
    return factor


def _manual_step(run: Run) -> Step:
    training_step = guarded(run, bound_step(run, "training_step", ("batch", "batch_idx")))
    progress = run.progress
    wants_outputs = bool(run.hooks.on_train_batch_end)  # type: ignore[attr-defined]
    counts_anyway = not run.optimizers

    def step(batch: Any, i: int) -> Any:
        output = training_step(batch, i)
        if run.stepped or counts_anyway:
            run.stepped = False
            progress.step += 1
        if output is not None and not isinstance(output, (Tensor, Mapping)):
            loss_of(run, output, i)
        if isinstance(output, Mapping):
            run.train_metrics.add_returned(output)
        if not wants_outputs:
            return None
        return {"loss": output.detach()} if isinstance(output, Tensor) else _detached(dict(output)) if output else {}

    return step


def _without_optimizer(run: Run) -> Step:
    training_step = guarded(run, bound_step(run, "training_step", ("batch", "batch_idx")))
    progress = run.progress
    wants_outputs = bool(run.hooks.on_train_batch_end)  # type: ignore[attr-defined]

    def step(batch: Any, i: int) -> Any:
        output = training_step(batch, i)
        loss = loss_of(run, output, i)
        if loss is not None:
            run.hooks.fire("on_before_backward", loss)
            if loss.requires_grad:
                run.engine.backward(loss)
            run.hooks.fire("on_after_backward")
        progress.step += 1
        return outputs_of(output, loss, wants_outputs)

    return step
