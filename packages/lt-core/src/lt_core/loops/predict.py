"""Predict: run the model over loaders and gather what it returns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lt_core.data.nested import leaves, move_to_device
from lt_core.data.to_device import build_place
from lt_core.loops.evaluate import eval_step, evaluation_modes, loaders_of, shadow_step
from lt_core.notices import warn
from lt_core.state.agreement import heard
from lt_core.state.loop_state import PredictState
from lt_core.state.stage import PREDICT

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["run_predict"]

_NOTHING = object()
_PART, _ENTRY = 16 << 20, 1 << 12  # bytes: of a part that ranks exchange, and of what is no tensor in each output


def run_predict(run: Run, keep: bool, whole: bool = False) -> list[Any] | None:
    """Run the predict loop.

    Args:
        run: The run.
        keep: Whether to return what predict_step returned.
        whole: Whether rank 0 returns that of all ranks, in the data's order, and not only its own.

    Returns:
        The predictions of one loader, a list of those for several, or None.
    """
    feed = loaders_of(run, PREDICT)
    if not feed.loaders:
        return [] if keep else None
    hooks = run.hooks
    place = build_place(run, PREDICT)
    needed = any(callback.keeps_predictions for callback in run.callbacks)
    kept = [list[Any]() for _ in feed.loaders] if keep or needed else []
    indices = [list[list[int]]() for _ in feed.loaders] if needed else []
    run.loop.predict = PredictState(kept, indices)
    warned = False
    with evaluation_modes(run, PREDICT), torch.inference_mode() if run.plan.inference_mode else torch.no_grad():
        hooks.fire("on_predict_start")
        hooks.fire("on_predict_epoch_start")
        feed = run.feeds.made[PREDICT.word]  # a hook may have exchanged it
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
            if kept:
                kept[loader].append(move_to_device(output, torch.device("cpu")))
            if indices:
                indices[loader].append(feed.indices)
        hooks.fire("on_predict_epoch_end")
        hooks.fire("on_predict_end")
    run.loop.predict = PredictState()
    if not keep or not run.trainer.limit_predict_batches:
        return None
    if whole and run.world.data_size > 1:
        kept = [_in_order(run, outputs) for outputs in kept]
    return kept if len(kept) > 1 else kept[0]


def _in_order(run: Run, outputs: list[Any]) -> list[Any]:
    """Return on rank 0 all ranks' outputs for a loader, round by round in the order of ranks; elsewhere this rank's.

    They come in parts, which ranks that do not need them let go of at once.
    """
    world, shares = run.world, {run.world.data_rank: outputs}
    for source in range(1, world.size):
        parts, theirs = _parts(outputs), list[Any]()
        while True:
            mine = world.data_rank, next(parts, None) if source == world.rank else None
            place, part = run.collectives.broadcast_object(mine, source)
            if part is None:
                break
            theirs += () if world.rank else part
        shares.setdefault(place, theirs)  # ranks that see the same samples all send them
    if world.rank:
        return outputs
    rounds = zip_longest(*(shares[rank] for rank in sorted(shares)), fillvalue=_NOTHING)
    return [output for each in rounds for output in each if output is not _NOTHING]


def _parts(outputs: list[Any]) -> Iterator[list[Any]]:
    """Yield outputs in lists of which each is small."""
    part: list[Any] = []
    size = 0
    for output in outputs:
        part.append(output)
        size += _ENTRY + sum(leaf.nbytes for _, leaf in leaves(output) if isinstance(leaf, Tensor))
        if size >= _PART:
            yield part
            part, size = [], 0
    yield part
