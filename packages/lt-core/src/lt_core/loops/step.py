"""Build the step once: a straight line for ordinary optimizers, a closure for those that need one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lt_core.hooks.table import overrides
from lt_core.loops.calls import (
    Pieces,
    Step,
    between,
    detached,
    explain_backward,
    loss_of,
    outputs_of,
    rescale_short_window,
)
from lt_core.loops.window import closure_step
from lt_core.metrics.slot import AFTER_BACKWARD, BEFORE_BACKWARD, BEFORE_STEP, BEFORE_ZERO_GRAD, TRAIN_STEP
from lt_interface import decides_by_closure

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["build_step"]


def build_step(run: Run, alone: bool = False) -> Step:
    """Return ``step(batch, batch_idx) -> outputs`` for the run as it is now.

    The outputs are what ``on_train_batch_end`` gets, or None where nobody asks. ``engine.owns`` is read here, where the
    engine is built and at an epoch's start, and never between two batches.

    Args:
        run: The run.
        alone: Whether this rank exchanges nothing with the others, as in a trial that may fail on one of them.
    """
    pieces = Pieces(run)
    around = pieces.around
    if alone and around is not None:
        pieces.around = lambda last: around(False)
    run.loop.fit.close = None if pieces.owned else partial(_close, pieces)
    if not run.module.automatic_optimization:
        step = _manual_step(pieces)
    elif not run.optimizers:
        step = _without_optimizer(pieces)
    elif overrides(run.module, "optimizer_step") or decides_by_closure(run.optimizers[0]):
        step = closure_step(pieces)
    elif run.plan.accumulate == 1 and pieces.around is None and not pieces.shared:
        step = _straight_step(pieces)
    else:
        step = _window_step(pieces)
    return step if alone else between(None, step, _after(run))


def _after(run: Run) -> Callable[[], Any] | None:
    """Return what follows each step, before the hooks of the batch's end: the engine's call, and ranks share values."""
    store, loop, boundary = run.metrics.train, run.loop, run.engine.boundary
    if run.world.size == 1:
        return boundary

    def after() -> None:
        if boundary is not None:
            boundary()
        if store.shares is None:
            store.shares = run.collectives.any(store.syncs)
        if store.syncs and not store.shares:
            loop.wish = True  # all ranks learn of it when they settle
        store.share()

    return after


def _straight_step(p: Pieces) -> Step:
    """Return `Pieces.forward_backward` and the update as one straight line, for windows of one batch."""
    run = p.run
    progress, update, optimizer = run.progress, p.update, p.optimizer
    training_step, backward, zero_grad = p.training_step, p.backward, p.zero_grad
    before_zero_grad, before_backward, after_backward = p.before_zero_grad, p.before_backward, p.after_backward
    before_step, unscale, clip, wants_outputs = p.before_step, p.unscale, p.clip, p.wants_outputs
    plain_zero_grad, store = p.plain_zero_grad, p.store
    held: Tensor | None = None

    def step(batch: Any, i: int) -> Any:
        # The last step's graph lives until this one has made its own, as in a hand-written loop: torch then uses each
        # parameter's AccumulateGrad node again in place of making a new one (1 to 2 % of a small step).
        nonlocal held
        output = training_step(batch, i)
        loss = output if isinstance(output, Tensor) else loss_of(run, output, i)
        for f in before_zero_grad:
            store.scope = BEFORE_ZERO_GRAD
            f(optimizer)
            store.scope = TRAIN_STEP
        if plain_zero_grad is not None:
            plain_zero_grad()
        else:
            zero_grad(i)
        if loss is not None:
            for f in before_backward:
                store.scope = BEFORE_BACKWARD
                f(loss)
                store.scope = TRAIN_STEP
            try:
                backward(loss)
            except RuntimeError as error:
                raise explain_backward(run, loss, i, error) from error
            for f in after_backward:
                store.scope = AFTER_BACKWARD
                f()
                store.scope = TRAIN_STEP
        if unscale is not None:
            unscale(0)
        for f in before_step:
            store.scope = BEFORE_STEP
            f(optimizer)
            store.scope = TRAIN_STEP
        if clip is not None:
            clip()
        if update(0, True):
            progress.step += 1
        held = loss
        if not wants_outputs:
            return None
        return {"loss": loss.detach()} if loss is output and loss is not None else outputs_of(output, loss, True)

    return step


def _window_step(p: Pieces) -> Step:
    """Return the step of windows of several batches, of ranks, or of an engine with a context of its own."""
    run = p.run
    progress, update, owned = run.progress, p.update, p.owned
    held: Tensor | None = None

    def step(batch: Any, i: int) -> Any:
        nonlocal held  # as in the straight step
        window = length, _, last = run.window(i)
        output, held = p.forward_backward(batch, i, window)
        if last:
            if p.unsized:
                rescale_short_window(run, i, length)
            p.before_update()
        if (last or owned) and update(0, last):
            progress.step += 1
        return outputs_of(output, held, p.wants_outputs)

    return step


def _close(p: Pieces, i: int) -> None:
    """Step with what the open window has of its gradients: the epoch ends behind batch ``i``."""
    run = p.run
    p.exchange()
    rescale_short_window(run, i, run.window_length(i - i % run.accumulate))
    p.before_update()
    if p.update(0, True):
        run.progress.step += 1


def _manual_step(p: Pieces) -> Step:
    run = p.run
    progress = run.progress
    counts_anyway = not run.optimizers

    def step(batch: Any, i: int) -> Any:
        with p.inside(True):
            output = p.training_step(batch, i)
        if run.loop.fit.stepped or counts_anyway:
            run.loop.fit.stepped = False
            progress.step += 1
        if output is not None and not isinstance(output, (Tensor, Mapping)):
            loss_of(run, output, i)
        if isinstance(output, Mapping):
            run.metrics.train.add_returned(output)
        if not p.wants_outputs:
            return None
        return {"loss": output.detach()} if isinstance(output, Tensor) else detached(dict(output)) if output else {}

    return step


def _without_optimizer(p: Pieces) -> Step:
    """Return the step of a module whose configure_optimizers returns None: each batch counts as a step."""

    def step(batch: Any, i: int) -> Any:
        output, loss = p.forward_backward(batch, i, (1, True, True))
        p.run.progress.step += 1
        return outputs_of(output, loss, p.wants_outputs)

    return step
