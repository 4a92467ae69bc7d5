"""Precisions, under the path that users' imports name."""

from typing import Any

from lt_core.builtin.precision import DoublePrecision, HalfPrecision
from lt_interface import Precision, registry

__all__ = ["DoublePrecision", "HalfPrecision", "Precision"]


def __getattr__(name: str) -> Any:
    return registry.precisions.class_named(name, __name__)
