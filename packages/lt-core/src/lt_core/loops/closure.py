"""Build the step for optimizers that call a closure, such as LBFGS, and for overridden optimizer_step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lt_core.loops.step import Pieces, explain_backward, loss_of, outputs_of, rescale_short_window
from lt_core.notices import warn

if TYPE_CHECKING:
    from lt_core.run import Run

__all__ = ["closure_step"]


def closure_step(run: Run) -> Callable[[Any, int], Any]:
    """Return the step that hands ``optimizer_step`` a closure over the whole accumulation window.

    Batches before the window's last run as they arrive. The closure's first call runs the
    last one; each further call, as LBFGS makes, clears the gradients and runs all of the
    window again, with logging off.
    """
    p = Pieces(run)
    module, progress, engine = run.module, run.progress, run.engine
    wrapped = run.lightning_optimizers[0]
    no_sync = engine.accumulate or nullcontext
    unsized = run.feed.num_batches == float("inf")
    owns = "accumulate" in engine.owns
    window: list[tuple[Any, int]] = []

    def backward_of(output: Any, i: int, length: int, first: bool) -> Tensor | None:
        loss = output if isinstance(output, Tensor) else loss_of(run, output, i)
        if loss is not None and not owns and length != 1:
            loss = loss / length
        if first:
            for f in p.before_zero_grad:
                f(p.optimizer)
            p.zero_grad(i)
        if loss is not None:
            for f in p.before_backward:
                f(loss)
            try:
                p.backward(loss)
            except RuntimeError as error:
                raise explain_backward(run, loss, i, error) from error
            for f in p.after_backward:
                f()
        return loss

    def step(batch: Any, i: int) -> Any:
        length, first, last = run.window(i)
        if first:
            window.clear()
            losses.clear()
        window.append((batch, i))
        if not last:
            with no_sync():
                output = p.training_step(batch, i)
                loss = backward_of(output, i, length, first)
            losses.append(loss)
            return outputs_of(output, loss, p.wants_outputs)
        result: list[tuple[Any, Tensor | None]] = []

        def closure() -> Tensor | None:
            if not result:
                output = p.training_step(batch, i)
                result.append((output, backward_of(output, i, length, first)))
                parts = [*losses, result[0][1]]
            else:
                parts = evaluate_again(length)
            factor = rescale_short_window(run, i, length) if unsized else 1.0
            p.before_update()
            loss = total(parts)
            return loss if loss is None or factor == 1.0 else loss * factor

        module.optimizer_step(progress.epoch, i, wrapped, closure)
        if not result:
            if not run.warned_closure:
                run.warned_closure = True
                warn(
                    f"{type(module).__name__}.optimizer_step: the closure was not called, so batch {i} had no training_step. "
                    "Call optimizer.step(closure=optimizer_closure)."
                )
            run.stepped = False
            return {} if p.wants_outputs else None
        if run.stepped:  # an override may also have run the closure without a step
            run.stepped = False
            progress.step += 1
        window.clear()
        return outputs_of(*result[0], p.wants_outputs)

    def evaluate_again(length: int) -> list[Tensor | None]:
        run.train_metrics.muted = True
        try:
            return [backward_of(p.training_step(b, j), j, length, k == 0) for k, (b, j) in enumerate(window)]
        finally:
            run.train_metrics.muted = False

    losses: list[Tensor | None] = []
    return step


def total(parts: list[Tensor | None]) -> Tensor | None:
    """Return the sum of a window's losses, or None if every batch was skipped."""
    present = [x for x in parts if x is not None]
    if not present:
        return None
    loss = present[0]
    for x in present[1:]:
        loss = loss + x
    return loss
