"""The CSV logger, under the path that users' imports name."""

from lt_core.tracking.csv import CSVLogger

__all__ = ["CSVLogger"]
