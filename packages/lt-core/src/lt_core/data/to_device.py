"""Bring a batch to the device: the transfer hooks, the precision's format, the engine's move, changes there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lt_core.data.sources import owner_of
from lt_core.data.stager import Stager
from lt_core.data.stream import batch_seed
from lt_core.hooks.table import HOOKS, bind, overrides
from lt_core.metrics.store import FORBIDDEN
from lt_core.state import rng
from lt_core.state.stage import TRAIN, Stage

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["build_place"]


def build_place(run: Run, stage: Stage) -> Callable[[Any, int], Any] | None:
    """Return what takes ``(batch, dataloader_idx)`` and returns the placed batch, or None if nothing is to do.

    It is a `Stager` in training where the engine moves batches by one and nobody overrides a transfer hook. A data
    module's override takes precedence over the module's. Callbacks that change batches do so last.

    Args:
        run: The run.
        stage: Whose batches they are.
    """
    place, change = _build_move(run), _build_change(run, stage)
    if change is None:
        return place
    changed = run.timed(change, "batch_transform")
    if isinstance(place, Stager) and stage is TRAIN:
        take = place.take
        place.take = lambda handle: changed(take(handle), 0)  # type: ignore[method-assign]
        return place
    if place is None:
        return changed
    move = place
    return lambda batch, loader: changed(move(batch, loader), loader)


def _build_change(run: Run, stage: Stage) -> Callable[[Any, int], Any] | None:
    """Return what lets the callbacks change a batch that is on the device, or None if none of them does.

    The seeds follow from the run's seed and the batch's place in its epoch, as those of a loader's workers do.
    """
    able = (callback for callback in run.callbacks if overrides(callback, "transform_for"))
    made = enumerate(callback.transform_for(stage.word, run.device) for callback in able)
    functions = [(number, function) for number, function in made if function is not None]
    if not functions:
        return None
    world, progress, where, counts = run.world, run.progress, (run.trainer.accelerator, run.device), Counter[int]()

    def change(batch: Any, loader: int = 0) -> Any:
        index = progress.batch if stage is TRAIN else counts[loader]
        counts[loader] += 1
        position = index * world.data_size + world.data_rank
        with rng.isolate(*where):
            for number, function in functions:
                seed = batch_seed(run.plan.seed, progress.epoch, loader, -1 - number, position)
                rng.seed_process(seed, run.device)
                batch = function(batch, seed)
        return batch

    return change


def _build_move(run: Run) -> Callable[[Any, int], Any] | None:
    """Return what brings a batch to the device, with its hooks, or None if nothing does."""
    before = _hook(run, "on_before_batch_transfer")
    move = _hook(run, "transfer_batch_to_device")
    after = _hook(run, "on_after_batch_transfer")
    convert = run.precision.convert_batch if getattr(run.precision, "converts_batch", True) else None
    place, device = run.engine.place, run.device
    if before is move is after is None:
        if convert is place is None:
            return None
        if isinstance(place, Stager):
            staged = Stager(place.stream, place.device, convert)
            staged.put = run.timed(staged.put, "batch_to_device")  # type: ignore[method-assign]
            return staged

    module = run.module

    def bring(batch: Any, dataloader_idx: int = 0) -> Any:
        store = module._metrics
        scope = store.scope
        store.scope = FORBIDDEN  # a log here would go to the last batch
        if convert is not None:
            batch = convert(batch)
        if before is not None:
            store.hook = "on_before_batch_transfer"
            batch = before(batch, dataloader_idx)
        if move is not None:
            store.hook = "transfer_batch_to_device"
            batch = move(batch, device, dataloader_idx)
        elif place is not None:
            batch = place(batch)
        if after is not None:
            store.hook = "on_after_batch_transfer"
            batch = after(batch, dataloader_idx)
        store.scope = scope
        return batch

    return run.timed(bring, "batch_to_device")


def _hook(run: Run, name: str) -> Callable[..., Any] | None:
    owner = owner_of(run, name)
    bound = None if owner is None else bind(getattr(owner, name), HOOKS[name].args)
    return None if bound is None else run.hook(bound, owner, name)
