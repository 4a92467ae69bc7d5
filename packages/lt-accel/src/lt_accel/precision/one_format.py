"""Base of the precisions whose batches and new tensors have one format, whatever stores the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from lt_interface import PlainPrecision

__all__ = ["OneFormat", "cast", "default_format"]


class OneFormat(PlainPrecision):
    """Inputs and new tensors in one floating-point format.

    Args:
        dtype: The format.
    """

    converts_batch = True

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new floating-point tensors have the format."""
        return default_format(self.dtype)

    def convert_batch(self, batch: Any) -> Any:
        """Return the batch with its floating-point tensors in the format."""
        return cast(batch, self.dtype)


@contextmanager
def default_format(dtype: torch.dtype) -> Iterator[None]:
    """Return a context in which new floating-point tensors have a format."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def cast(batch: Any, dtype: torch.dtype) -> Any:
    """Return a batch with its floating-point tensors in a format.

    Lists, tuples, named tuples, packed sequences, mappings and dataclasses are walked, and made anew as what they were.
    """

    def cast_item(item: Any) -> Any:
        return cast(item, dtype)

    if isinstance(batch, torch.Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(cast_item, batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map(cast_item, batch))
    if isinstance(batch, Mapping):
        new: Any = copy.copy(batch)
        for key, item in batch.items():
            new[key] = cast_item(item)
        return new
    if is_dataclass(batch) and not isinstance(batch, type):
        new = copy.copy(batch)
        for field in fields(batch):
            object.__setattr__(new, field.name, cast_item(getattr(batch, field.name)))
        return new
    return batch
