"""Stores of checkpoints under the path that users' imports name."""

from lt_core.checkpoint.format.async_io import AsyncCheckpointIO
from lt_core.checkpoint.format.torch_io import TorchCheckpointIO
from lt_interface import CheckpointIO

__all__ = ["AsyncCheckpointIO", "CheckpointIO", "TorchCheckpointIO"]
