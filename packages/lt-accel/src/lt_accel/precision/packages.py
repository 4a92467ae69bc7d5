"""Find the optional packages that some precisions compute with."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lt_interface import MissingPackageError, Problem

__all__ = ["require"]


def require(module: str, where: str, extra: str, options: str = "") -> Any:
    """Return a module of an optional package.

    Args:
        module: Its dotted name.
        where: What needs it, as the user wrote it.
        extra: The extra of lt-accel that brings it, in a version that fits.
        options: What ``pip install`` needs beside it.

    Raises:
        MissingPackageError: If it is not installed, or broken.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        got = "" if isinstance(error, ModuleNotFoundError) else f"{type(error).__name__}: {str(error).rstrip('.')}"
        fix = f"Run: pip install {options}'lt-accel[{extra}]'"
        problem = Problem(where, f"the package {package} is needed", got, fix)
        raise MissingPackageError(problem, name=package) from error
