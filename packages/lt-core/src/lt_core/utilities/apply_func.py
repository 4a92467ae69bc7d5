"""Functions over nested collections, under the path that users' imports name."""

from lt_core.data.nested import apply_to_collection
from lt_core.data.nested import move_to_device as move_data_to_device

__all__ = ["apply_to_collection", "move_data_to_device"]
