"""ModelCheckpoint, under the path that users' imports name."""

from lt_core.callbacks.checkpointing.callback import ModelCheckpoint

__all__ = ["ModelCheckpoint"]
