"""Precisions, under the path that users' imports name."""

from functools import partial

from lt_core.builtin.precision import DoublePrecision, HalfPrecision
from lt_interface import Precision, registry

__all__ = ["DoublePrecision", "HalfPrecision", "Precision"]

__getattr__ = partial(registry.precisions.class_named, module=__name__)
