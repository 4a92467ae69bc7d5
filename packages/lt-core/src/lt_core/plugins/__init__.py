"""Plugins under the paths that users' imports name; those of sibling packages are there where these are installed."""

from typing import Any

from lt_core.builtin.precision import DoublePrecision, HalfPrecision
from lt_core.checkpoint.format.async_io import AsyncCheckpointIO
from lt_core.checkpoint.format.torch_io import TorchCheckpointIO
from lt_interface import CheckpointIO, ClusterEnvironment, Precision, registry

__all__ = [
    "AsyncCheckpointIO",
    "CheckpointIO",
    "ClusterEnvironment",
    "DoublePrecision",
    "HalfPrecision",
    "Precision",
    "TorchCheckpointIO",
]


def __getattr__(name: str) -> Any:
    return registry.precisions.class_named(name, __name__)
