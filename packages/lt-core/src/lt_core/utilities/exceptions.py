"""Errors, under the path that users' imports name."""

from lt_interface.errors import ConfigError, MisconfigurationException

__all__ = ["ConfigError", "MisconfigurationException"]
