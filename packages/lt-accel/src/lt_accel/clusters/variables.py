"""Environment variables that a scheduler sets, read with errors that name them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from lt_interface import ConfigError, Problem

__all__ = ["given", "number", "port"]

_PORTS = range(1, 1 << 16)


def number(name: str, owner: str, default: int | None = None) -> int:
    """Return the whole number in an environment variable.

    Args:
        name: The variable.
        owner: Who sets it, for the error.
        default: What counts where it is not set; None makes that an error.

    Raises:
        ConfigError: If there is no such number.
    """
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.strip().isdecimal():
        raise ConfigError(_problem(name, f"{owner} must set it to a whole number", owner))
    return int(text)


def port(name: str, owner: str, default: int | None = None) -> int:
    """Return the port in an environment variable; takes what `number` does.

    Raises:
        ConfigError: If there is none, or a number that no port has.
    """
    found = number(name, owner, default)
    if found not in _PORTS:
        raise ConfigError(_problem(name, f"a port is a number from 1 to {_PORTS[-1]}", owner))
    return found


def given(names: Iterable[str]) -> str:
    """Return those variables that are set, as ``NAME=value``, for messages."""
    return ", ".join(f"{name}={os.environ[name]}" for name in dict.fromkeys(names) if name in os.environ)


def _problem(name: str, rule: str, owner: str) -> Problem:
    got = repr(os.environ[name]) if name in os.environ else "nothing"
    return Problem(name, rule, got, f"Start this program by {owner}, or unset its variables.")
