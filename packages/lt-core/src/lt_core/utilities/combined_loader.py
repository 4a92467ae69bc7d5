"""Loaders side by side, under the path that users' imports name."""

from lt_core.data.combined import CombinedLoader

__all__ = ["CombinedLoader"]
