"""Accelerators under the path that users' imports name; those of sibling packages where these are there."""

from lt_core.builtin.cpu import CPUAccelerator
from lt_core.names import finder
from lt_interface import Accelerator, registry

__all__ = ["Accelerator", "CPUAccelerator"]

__getattr__ = finder(__name__, registry.accelerators)
