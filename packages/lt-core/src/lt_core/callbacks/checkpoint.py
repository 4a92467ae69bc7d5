"""Checkpoint, under the path that users' imports name."""

from lt_core.callbacks.checkpointing.callback import Checkpoint

__all__ = ["Checkpoint"]
