"""Checks of what loggers are made with, before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lt_interface import ConfigError, MissingPackageError, Problem

__all__ = ["check_choice", "check_numbers", "check_paths", "check_texts", "missing"]


def missing(logger: str, extra: str) -> MissingPackageError:
    """Return the error of a logger whose tracker's package is not installed."""
    return MissingPackageError(
        f"{logger}: this logger needs a package that is not installed. Run: pip install 'lt-loggers[{extra}]'"
    )


def check_choice(where: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Check that a value is one of a few; True is not 1.

    Raises:
        ConfigError: If it is not.
    """
    if not any(value is one or (isinstance(value, str) and value == one) for one in allowed):
        rule = f"this must be one of {', '.join(map(repr, allowed))}"
        raise ConfigError(Problem(f"{where}({name}={value!r})", rule))


def check_texts(where: str, **given: Any) -> None:
    """Check that each value is text, or None.

    Raises:
        ConfigError: If one is not.
    """
    _check(where, given, (str, type(None)), "it must be text")


def check_paths(where: str, **given: Any) -> None:
    """Check that each value is a path, or None; trackers keep paths as text, so its bytes must be some.

    Raises:
        ConfigError: If one is not.
    """
    _check(where, given, (str, os.PathLike, type(None)), "it must be a path")
    for name, value in given.items():
        try:
            os.fspath(value or "").encode()
        except UnicodeEncodeError:
            rule, fix = "this tracker takes paths in UTF-8 only", "Rename the folder, or choose another one."
            raise ConfigError(Problem(f"{where}({name}={value!r})", rule, "bytes that are no text", fix)) from None


def check_numbers(where: str, **given: Any) -> None:
    """Check that each value is a number of seconds, not below 0.

    Raises:
        ConfigError: If one is not.
    """
    rule = "it must be a number of seconds"
    _check(where, given, (int, float), rule)
    for name, value in given.items():
        if not value >= 0:
            raise ConfigError(Problem(f"{where}({name}={value!r})", f"{rule}, not below 0"))


def _check(where: str, given: Mapping[str, Any], kinds: tuple[type, ...], rule: str) -> None:
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, kinds):  # True is no number
            raise ConfigError(Problem(f"{where}({name}={value!r})", rule, type(value).__name__))
