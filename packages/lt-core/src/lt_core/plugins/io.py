"""Stores of checkpoints under the path that users' imports name."""

from lt_core.checkpoint.format.async_io import AsyncCheckpointIO
from lt_core.checkpoint.format.torch_io import TorchCheckpointIO
from lt_interface import CheckpointIO

__all__ = ["AsyncCheckpointIO", "CheckpointIO", "TorchCheckpointIO"]

__path__: list[str] = []  # an import of a module below has its answer, see lt_core.names
