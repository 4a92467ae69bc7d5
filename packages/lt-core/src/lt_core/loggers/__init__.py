"""Give metrics a place: the CSV logger, and the base that every other one derives from."""

from lt_core.tracking.csv import CSVLogger
from lt_core.tracking.dummy import DummyLogger
from lt_interface import Logger

__all__ = ["CSVLogger", "DummyLogger", "Logger"]
