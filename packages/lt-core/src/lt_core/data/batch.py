"""Read off a batch how many samples it holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

__all__ = ["batch_size"]


def _sizes(batch: Any) -> Iterator[int]:
    if isinstance(batch, torch.Tensor):
        yield batch.size(0) if batch.ndim else 1
    elif isinstance(batch, str | bytes):
        return
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _sizes(value)
    elif is_dataclass(batch) and not isinstance(batch, type):
        for field in fields(batch):
            yield from _sizes(getattr(batch, field.name))
    elif isinstance(batch, Iterable) and not isinstance(batch, Iterator) and not hasattr(batch, "__array__"):
        for value in batch:
            yield from _sizes(value)


def batch_size(batch: Any) -> tuple[int | None, bool]:
    """Find the size of a batch: the first dimension of the first tensor in it.

    Mappings, dataclasses and iterables are walked depth first; a tensor without dimensions counts
    as one sample; strings, arrays of other libraries and iterators are passed over.

    Returns:
        The size, or None if there is no tensor; and whether tensors of other sizes follow.
    """
    first: int | None = None
    for size in _sizes(batch):
        if first is None:
            first = size
        elif size != first:
            return first, True
    return first, False
