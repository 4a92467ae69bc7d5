"""What acts on the first process alone, and loaders side by side, under the path that users' imports name."""

from lt_core.data.combined import CombinedLoader
from lt_interface import rank_zero_info, rank_zero_only, rank_zero_warn

__all__ = ["CombinedLoader", "rank_zero_info", "rank_zero_only", "rank_zero_warn"]
