"""Give metrics a place: the CSV logger, the base that every other one derives from, and those of lt-loggers."""

from lt_core.names import finder
from lt_core.tracking.csv import CSVLogger
from lt_core.tracking.dummy import DummyLogger
from lt_interface import Logger, registry

__all__ = ["CSVLogger", "DummyLogger", "Logger"]

__getattr__ = finder(__name__, registry.loggers)
