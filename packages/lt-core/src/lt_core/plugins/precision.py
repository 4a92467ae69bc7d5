"""Precisions, under the path that users' imports name."""

from lt_core.builtin.precision import DoublePrecision, HalfPrecision
from lt_core.names import finder
from lt_interface import PlainPrecision as Precision
from lt_interface import registry

__all__ = ["DoublePrecision", "HalfPrecision", "Precision"]

__getattr__ = finder(__name__, registry.precisions)

__path__: list[str] = []  # an import of a module below has its answer, see lt_core.names
