"""Bring a batch to the device: the transfer hooks, the precision's format, the engine's move."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lt_core.data.sources import owner_of
from lt_core.data.stager import Stager
from lt_core.hooks.table import HOOKS, bind
from lt_core.metrics.store import FORBIDDEN

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["build_place"]


def build_place(run: Run) -> Callable[[Any, int], Any] | None:
    """Return what takes ``(batch, dataloader_idx)`` and returns the placed batch, or None if nothing is to do.

    It is a `Stager` where the engine moves batches by one and nobody overrides a transfer hook. A data module's
    override takes precedence over the module's.
    """
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
