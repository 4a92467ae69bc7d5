"""Environment variables that a scheduler sets, read with errors that name them."""

from __future__ import annotations

import os

from lt_interface.errors import MisconfigurationException, Problem

__all__ = ["number"]


def number(name: str, owner: str, default: int | None = None) -> int:
    """Return the whole number in an environment variable.

    Args:
        name: The variable.
        owner: Who sets it, for the error.
        default: What counts where it is not set; None makes that an error.

    Raises:
        MisconfigurationException: If there is no such number.
    """
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.strip().isdecimal():
        got = "nothing" if text is None else repr(text)
        fix = f"Start this program by {owner}, or unset its variables."
        raise MisconfigurationException(Problem(name, f"{owner} must set it to a whole number", got, fix))
    return int(text)
