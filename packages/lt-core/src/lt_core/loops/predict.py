"""Predict: run the model over loaders and gather what it returns."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch

from lt_core.data.to_device import build_place
from lt_core.loops.evaluate import eval_step, evaluation_modes, loaders_of, shadow_step
from lt_core.notices import warn
from lt_core.state.agreement import heard
from lt_core.state.stage import PREDICT

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["run_predict"]

_NOTHING = object()


def run_predict(run: Run, keep: bool, whole: bool = False) -> list[Any] | None:
    """Run the predict loop.

    Args:
        run: The run.
        keep: Whether to return what predict_step returned.
        whole: Whether to return that of all ranks, in the data's order, and not this rank's alone.

    Returns:
        The predictions of one loader, a list of those for several, or None.
    """
    from lt_core.data.nested import move_to_device

    feed = loaders_of(run, PREDICT)
    if not feed.loaders:
        return [] if keep else None
    hooks = run.hooks
    place = build_place(run)
    kept: list[list[Any]] = [[] for _ in feed.loaders]
    warned = False
    with evaluation_modes(run, PREDICT), torch.inference_mode() if run.plan.inference_mode else torch.no_grad():
        hooks.fire("on_predict_start")
        hooks.fire("on_predict_epoch_start")
        step = eval_step(run, PREDICT.step, len(feed.loaders) > 1)
        store = run.metrics.current
        for batch, i, loader in heard(run, run.timed_batches(feed.epoch(run.progress.epoch), PREDICT)):
            if place is not None:
                batch = place(batch, loader)
            if not feed.weight:
                shadow_step(run, step, batch, i, loader)
                continue
            store.hook = "on_predict_batch_start"
            for f in hooks.on_predict_batch_start:  # type: ignore[attr-defined]
                f(batch, i, loader)
            store.hook = "predict_step"
            output = step(batch, i, loader)
            if output is None and not warned:
                warned = True
                warn("predict_step returned None for a batch: is a return missing?")
            store.hook = "on_predict_batch_end"
            for f in hooks.on_predict_batch_end:  # type: ignore[attr-defined]
                f(output, batch, i, loader)
            if keep:
                kept[loader].append(move_to_device(output, torch.device("cpu")))
        hooks.fire("on_predict_epoch_end")
        hooks.fire("on_predict_end")
    if not keep or not run.trainer.limit_predict_batches:
        return None
    if whole and run.world.data_size > 1:
        kept = [_in_order(run, outputs) for outputs in kept]
    return kept if len(kept) > 1 else kept[0]


def _in_order(run: Run, outputs: list[Any]) -> list[Any]:
    """Return all ranks' outputs for a loader: of each round of batches first rank 0's, then rank 1's, and so on."""
    shares = dict(run.collectives.gather_object((run.world.data_rank, outputs)))
    rounds = zip_longest(*(shares[rank] for rank in sorted(shares)), fillvalue=_NOTHING)
    return [output for each in rounds for output in each if output is not _NOTHING]
