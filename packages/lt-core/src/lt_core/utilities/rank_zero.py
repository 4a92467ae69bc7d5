"""What acts on the first process alone, under the path that users' imports name."""

from lt_interface import rank_zero_info, rank_zero_only, rank_zero_warn

__all__ = ["rank_zero_info", "rank_zero_only", "rank_zero_warn"]
