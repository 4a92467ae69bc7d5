"""Send from a run's journal what its loggers lack, under the path that users' programs name."""

from lt_core.tracking.replay import find_journal, pending, replay

__all__ = ["find_journal", "pending", "replay"]
