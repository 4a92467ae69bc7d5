"""Checkpoint, under the path that users' imports name."""

from lt_core.callbacks.checkpointing.base import Checkpoint

__all__ = ["Checkpoint"]
