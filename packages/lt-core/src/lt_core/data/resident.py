"""Keep a small training set on the device, so that a batch costs one indexing there."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from lt_core.data.nested import move_to_device
from lt_interface.errors import Problem

__all__ = ["resident", "resident_problem"]


class _Rows(Dataset[Any]):
    """Tensors on a device, of which whole batches are taken at once.

    Args:
        tensors: The tensors, with the samples along their first dimension.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def __getitems__(self, indices: Any) -> list[Tensor]:
        """Return what stacking the samples of these indices gives."""
        where = move_to_device(torch.as_tensor(indices), self.tensors[0].device)
        return [tensor[where] for tensor in self.tensors]

    def __len__(self) -> int:
        return len(self.tensors[0])


def resident(loader: DataLoader[Any], device: torch.device) -> DataLoader[Any]:
    """Return a loader of the batches that the loader would give without workers, taken from tensors on the device.

    Args:
        loader: A loader for which `resident_problem` finds none.
        device: Where the tensors are copied to, once.
    """
    rows = _Rows(move_to_device(_tensors(loader.dataset), device))
    view = copy.copy(loader)
    # A worker process cannot use the device, and there is nothing left for it to do.
    alone = {"num_workers": 0, "prefetch_factor": None, "persistent_workers": False, "pin_memory": False, "timeout": 0}
    view.__dict__.update(alone, dataset=rows, collate_fn=_as_it_is, _iterator=None)
    return view


def _as_it_is(batch: Any) -> Any:
    return batch


def resident_problem(loader: Any, where: str) -> Problem | None:
    """Return why the set of a loader cannot be kept on the device, or None if it can.

    Args:
        loader: Whatever the user gave as a loader.
        where: How the error names it.
    """
    got = type(loader).__name__
    if isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__:
        if loader.batch_sampler is None:
            got = "a DataLoader with batch_size=None"
        elif _tensors(loader.dataset) is None:
            got = f"a dataset of type {type(loader.dataset).__name__}"
        elif loader.collate_fn is not default_collate:
            got = "a collate_fn of its own"
        else:
            return None
    rule = (
        "with Trainer(data_on_device=True) the set is copied once, so the loader must be a DataLoader of batches over "
        "a TensorDataset, or a Subset of one: whatever computes or draws for each sample would be frozen"
    )
    return Problem(where, rule, got, "Give TensorDataset(*tensors), or leave data_on_device out.")


def _tensors(dataset: Any) -> list[Tensor] | None:
    """Return the tensors whose rows are the samples of a dataset, or None if it is of another kind."""
    kind = type(dataset)
    if isinstance(dataset, TensorDataset) and kind.__getitem__ is TensorDataset.__getitem__:
        return None if hasattr(kind, "__getitems__") else list(dataset.tensors)
    if kind is Subset and (inner := _tensors(dataset.dataset)) is not None:
        where = torch.as_tensor(dataset.indices)
        return [tensor[where] for tensor in inner]
    return None
