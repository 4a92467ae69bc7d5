"""Kinds of warnings, under the path that users' imports name."""

from lt_core.notices import PossibleUserWarning

__all__ = ["PossibleUserWarning"]
