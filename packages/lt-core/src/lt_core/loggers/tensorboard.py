"""A logger of lt-loggers, under the path that users' imports name."""

from lt_core.names import finder
from lt_interface import registry

__getattr__ = finder(__name__, registry.loggers)
