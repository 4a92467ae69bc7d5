"""Base of the precisions whose batches and new tensors have one format, whatever stores the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch

from lt_interface import PlainPrecision
from lt_interface.nested import map_items

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
    """Return a batch with its floating-point tensors in a format."""
    if isinstance(batch, torch.Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    return map_items(batch, partial(cast, dtype=dtype))
