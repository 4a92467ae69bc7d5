"""Deliver, combine, resume and move batches."""

from lt_core.data.combined import CombinedLoader
from lt_core.data.feed import Feed
from lt_core.data.nested import batch_size, move_to_device

__all__ = ["CombinedLoader", "Feed", "batch_size", "move_to_device"]
