"""Errors, under the path that users' imports name."""

from lt_interface.errors import ConfigError, MisconfigurationException, SIGTERMException

__all__ = ["ConfigError", "MisconfigurationException", "SIGTERMException"]
