"""Batches as plain values, which can be compared."""

from __future__ import annotations

from typing import Any

import torch


def plainly(batch: Any) -> Any:
    """Return a batch of any nesting with lists in the place of tensors and tuples."""
    if isinstance(batch, dict):
        return {key: plainly(item) for key, item in batch.items()}
    if isinstance(batch, list | tuple):
        return [plainly(item) for item in batch]
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch
