"""Plugins under the paths that users' imports name; those of sibling packages are there where these are installed."""

from lt_core.builtin.precision import DoublePrecision, HalfPrecision
from lt_core.checkpoint.format.async_io import AsyncCheckpointIO
from lt_core.checkpoint.format.torch_io import TorchCheckpointIO
from lt_core.names import finder
from lt_interface import CheckpointIO, ClusterEnvironment, registry
from lt_interface import PlainPrecision as Precision

__all__ = [
    "AsyncCheckpointIO",
    "CheckpointIO",
    "ClusterEnvironment",
    "DoublePrecision",
    "HalfPrecision",
    "Precision",
    "TorchCheckpointIO",
]

__getattr__ = finder(__name__, registry.precisions, registry.clusters)
