"""Build the step for optimizers that call a closure, such as LBFGS, and for overridden optimizer_step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lt_core.hooks.table import overrides
from lt_core.loops.calls import Pieces, outputs_of, rescale_short_window
from lt_core.metrics.slot import STEP, TRAIN_STEP
from lt_core.notices import warn

__all__ = ["closure_step"]


def closure_step(pieces: Pieces) -> Callable[[Any, int], Any]:
    """Return the step that hands the optimizer a closure over the whole accumulation window."""
    window = _Window(pieces)
    pieces.run.loop.fit.close = None if pieces.owned else lambda i: window.step(None, i, True)
    return window.step


class _Window:
    """One optimizer step a window, its closure over all of the window's batches.

    Batches before the window's last run as they arrive. The closure's first call runs the
    last one; each further call, as LBFGS makes, clears the gradients and runs all of the
    window again, with logging off.
    """

    def __init__(self, pieces: Pieces) -> None:
        self.run, self.pieces = pieces.run, pieces
        run = pieces.run
        self.wrapped = run.lightning_optimizers[0]
        self.store = run.metrics.train
        own = overrides(run.module, "optimizer_step")
        self.overridden = run.hook(run.module.optimizer_step, run.module, "optimizer_step") if own else None
        self.batches: list[tuple[Any, int, float]] = []
        self.losses: list[Tensor | None] = []

    def step(self, batch: Any, i: int, ended: bool = False) -> Any:
        """Run a batch; at its window's end, step.

        Args:
            batch: The batch, on the device.
            i: The batch's index.
            ended: Whether the epoch ended behind batch ``i``, which ran and left its window open: then only step.
        """
        run, p = self.run, self.pieces
        begun = run.window_length(i - i % run.accumulate), False, True
        window = length, first, last = begun if ended else run.window(i)
        if first:
            self.batches.clear()
            self.losses.clear()
        if not ended:
            self.batches.append((batch, i, run.feed.weight))
        if not last:
            output, loss = p.forward_backward(batch, i, window)
            self.losses.append(loss)
            if p.owned:
                p.update(0, False)
            return outputs_of(output, loss, p.wants_outputs)
        result: list[Any] = []

        def closure() -> Tensor | None:
            outer, self.store.scope = self.store.scope, TRAIN_STEP  # what follows is the step's, inside another hook
            if result:
                parts = self.evaluate_again(length)
            elif ended:
                result.extend((None, None))
                parts = self.losses
                p.exchange()
            else:
                with p.inside(True):  # the lines of forward_backward, a frame less
                    result.append(p.training_step(batch, i))
                    result.append(p.backward_of(result[0], i, window))
                parts = [*self.losses, result[1]]
            factor = rescale_short_window(run, i, length) if p.unsized or ended else 1.0
            p.before_update()
            loss = self.wrapped._loss = total(parts, factor)
            self.store.scope = outer
            return loss

        if self.overridden is not None:
            self.store.scope = STEP
            self.overridden(run.progress.epoch, i, self.wrapped, closure)
            self.store.scope = TRAIN_STEP
        else:
            self.wrapped.step(closure)
        self.batches.clear()
        return self.settle(result, i)

    def evaluate_again(self, length: int) -> list[Tensor | None]:
        """Run the whole window once more, its logging muted."""
        feed, losses = self.run.feed, []
        with self.run.metrics.train.mute():
            for k, (batch, i, feed.weight) in enumerate(self.batches):
                window = length, k == 0, k == len(self.batches) - 1
                losses.append(self.pieces.forward_backward(batch, i, window)[1])
        return losses

    def settle(self, result: list[Any], i: int) -> Any:
        """Count the step and return the outputs; an override may have left out the closure or the step."""
        run = self.run
        stepped, run.loop.fit.stepped = run.loop.fit.stepped, False
        if not result:
            if run.loop.first_time("closure"):
                warn(
                    f"{type(run.module).__name__}.optimizer_step: the closure was not called, so batch {i} had no "
                    "training_step. Call optimizer.step(closure=optimizer_closure)."
                )
            return {} if self.pieces.wants_outputs else None
        if stepped:
            run.progress.step += 1
        return outputs_of(result[0], result[1], self.pieces.wants_outputs)


def total(parts: list[Tensor | None], factor: float) -> Tensor | None:
    """Return the sum of a window's losses times a factor, or None if every batch was skipped."""
    present = [x for x in parts if x is not None]
    if not present:
        return None
    loss = present[0]
    for x in present[1:]:
        loss = loss + x
    return loss if factor == 1.0 else loss * factor
