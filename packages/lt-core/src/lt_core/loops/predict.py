"""Predict: run the model over loaders and gather what it returns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lt_core.data.nested import leaves, move_to_device
from lt_core.loops.batch import SKIPPED, begin_evaluation
from lt_core.loops.evaluate import evaluation_modes, loaders_of
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
    needed = any(callback.keeps_predictions for callback in run.callbacks)
    kept = [list[Any]() for _ in feed.loaders] if keep or needed else []
    indices = [list[list[int]]() for _ in feed.loaders] if needed else []
    run.loop.predict = PredictState(kept, indices)
    warned = False
    with evaluation_modes(run, PREDICT):
        feed, one = begin_evaluation(run, PREDICT)
        for batch, i, loader in heard(run, run.timed_batches(feed.epoch(run.progress.epoch), PREDICT)):
            output = one(batch, i, loader)
            if output is SKIPPED:
                continue
            if output is None and not warned:
                warned = True
                warn("predict_step returned None for a batch: is a return missing?")
            if kept:
                kept[loader].append(move_to_device(output, torch.device("cpu")))
            if indices:
                indices[loader].append(feed.indices)
        run.hooks.fire("on_predict_epoch_end")
        run.hooks.fire("on_predict_end")
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
