"""Strategies under the path that users' imports name; those of sibling packages where these are there."""

from lt_core.builtin.single_device import SingleDeviceStrategy
from lt_core.names import finder
from lt_interface import Strategy, registry

__all__ = ["SingleDeviceStrategy", "Strategy"]

__getattr__ = finder(__name__, registry.strategies)
