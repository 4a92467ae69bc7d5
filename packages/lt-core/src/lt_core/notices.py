"""Report something to the user: a warning to act on, or a line of information."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from lt_interface import is_rank_zero

__all__ = ["PossibleUserWarning", "info", "warn"]

_log = logging.getLogger("lt_core")
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class PossibleUserWarning(UserWarning):
    """Warning of something that may be meant; silence with ``POSSIBLE_USER_WARNINGS=off``."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn once for each place in the user's code, on rank 0 only, pointing at that place."""
    if not is_rank_zero() or (category is PossibleUserWarning and os.environ.get("POSSIBLE_USER_WARNINGS") == "off"):
        return
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    if frame.f_globals.get("__name__") == "threading":  # a thread of ours: there is no place in the user's code
        level = 2
    warnings.warn(message, category, stacklevel=level)


def info(message: str) -> None:
    """Write a line on rank 0 only: through the ``lt_core`` logger, or to stderr where no logging is configured."""
    if not is_rank_zero():
        return
    if _log.hasHandlers():
        _log.info(message)
    elif _log.level <= logging.INFO:
        print(message, file=sys.stderr)
