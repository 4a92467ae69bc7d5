"""Describe a run for reports on its time: sizes, and the flags that change how the time is spent."""

from __future__ import annotations

import os
from collections.abc import Sized
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["cores", "facts_of"]

_FLAGS = ("log_every_n_steps", "check_val_every_n_epoch", "val_check_interval", "limit_val_batches")


def facts_of(run: Run) -> dict[str, Any]:
    """Return plain values by name, for `lt_interface.TakesFacts`; what is not known is missing.

    ``num_workers`` is that of the loader with the fewest, ``batch_size`` the samples of a batch on this rank.

    Args:
        run: The run, its loaders made.
    """
    trainer = run.trainer
    found: dict[str, Any] = {name: _plain(getattr(trainer, name)) for name in _FLAGS} if run.fits else {}
    found |= {"device": str(run.device), "ranks": run.world.size, "cores": cores()}
    feed = run.feeds.made.get(run.stage.word)
    if feed is None:
        return found
    loaders = [loader for loader in feed.loaders if isinstance(loader, DataLoader)]
    if len(loaders) == len(feed.loaders) and loaders:
        least = min(loaders, key=lambda loader: loader.num_workers)
        found |= {name: vars(least)[name] for name in ("num_workers", "persistent_workers", "pin_memory")}
    elif feed.loaders:
        found["loader"] = f"a {type(feed.loaders[0]).__name__}"
    sizes = [size for loader in feed.loaders if (size := _batch_size(loader)) is not None]
    progress = run.progress
    done = progress.batches + progress.batch
    if sizes:
        found["batch_size"] = max(sizes)
    elif run.fits and done and progress.samples:
        found["batch_size"] = round(progress.samples / done / run.world.data_size, 1)
    return found


def _batch_size(loader: Any) -> int | None:
    """Return the samples of a loader's batch, or None where neither it nor a first batch at hand says so."""
    for each in (loader, getattr(loader, "batch_sampler", None)):
        size = getattr(each, "batch_size", None)
        if isinstance(size, int):
            return size
    first = loader[0] if isinstance(loader, list | tuple) and loader else None
    first = first[0] if isinstance(first, list | tuple) and first else first
    return len(first) if isinstance(first, Sized) and getattr(first, "ndim", True) else None


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else str(value)


def cores() -> int:
    """Return the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
