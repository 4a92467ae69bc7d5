"""Sizes of batches and loaders."""

from __future__ import annotations

from typing import Any

from torch.utils.data import IterableDataset

from lt_core.data.nested import batch_size
from lt_core.run.facts import cores
from lt_interface.errors import MisconfigurationException, Problem

__all__ = ["extract_batch_size", "has_iterable_dataset", "has_len", "suggested_max_num_workers"]


def extract_batch_size(batch: Any) -> int:
    """Return the size of a batch, as ``self.log`` finds it.

    Args:
        batch: The batch, nested as it may be.

    Raises:
        MisconfigurationException: If no tensor in it has a size.
    """
    size, _ = batch_size(batch)
    if size is None:
        rule, fix = "a batch has a size where there is a tensor in it", "Count its samples yourself."
        raise MisconfigurationException(Problem("extract_batch_size(batch)", rule, type(batch).__name__, fix))
    return size


def has_iterable_dataset(dataloader: object) -> bool:
    """Return whether a loader's dataset is a stream.

    Args:
        dataloader: The loader.
    """
    return isinstance(getattr(dataloader, "dataset", None), IterableDataset)


def has_len(dataloader: object) -> bool:
    """Return whether a loader knows how many batches it has.

    Args:
        dataloader: The loader.
    """
    try:
        len(dataloader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return False
    return True


def suggested_max_num_workers(local_world_size: int) -> int:
    """Return how many workers each loader can have, one CPU a process left to the process itself; at least 1.

    Args:
        local_world_size: How many processes train on this machine.
    """
    return max(1, cores() // local_world_size - 1)
