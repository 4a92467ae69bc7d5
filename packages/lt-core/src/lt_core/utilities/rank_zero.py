"""What acts on the first process alone."""

from __future__ import annotations

import logging
from typing import Any

from lt_interface import rank_zero_info, rank_zero_only, rank_zero_warn

__all__ = [
    "LightningDeprecationWarning",
    "rank_zero_debug",
    "rank_zero_deprecation",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
]


class LightningDeprecationWarning(DeprecationWarning):
    """Warning of code of the user's own library that a newer way replaces."""


@rank_zero_only
def rank_zero_debug(message: object, *args: Any, stacklevel: int = 4, **kwargs: Any) -> None:
    """Log a line for those who look for a fault, on the first process.

    Args:
        message: The line, with places for arguments as in ``logging``.
        *args: The arguments.
        stacklevel: As in Lightning: 4 is the caller.
        **kwargs: More for ``logging.Logger.debug``.
    """
    logging.getLogger("lt_core").debug(message, *args, stacklevel=stacklevel - 1, **kwargs)


def rank_zero_deprecation(message: str, stacklevel: int = 5) -> None:
    """Warn on the first process of what a newer way replaces.

    Args:
        message: The warning.
        stacklevel: As in Lightning: 5 is the caller of the function that calls this.
    """
    rank_zero_warn(message, stacklevel=stacklevel, category=LightningDeprecationWarning)
