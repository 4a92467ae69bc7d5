"""Names of a package that are imported when they are first asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazy"]


def lazy(package: str, homes: Mapping[str, str]) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return the ``__all__``, ``__getattr__`` and ``__dir__`` of a package whose names load on demand.

    Type checkers read the names in an ``if TYPE_CHECKING`` block in front of the call, one
    ``from package.module import *`` a module, so that each name is written once.

    Args:
        package: The package's ``__name__``.
        homes: For each module, by its name within the package, the names it provides, separated by blanks.

    Returns:
        The sorted names, the function that imports one of them, and the function that lists all.

    Example:
        >>> import json
        >>> names, get, _ = lazy("json", {"decoder": "JSONDecoder JSONDecodeError", "encoder": "JSONEncoder"})
        >>> names
        ['JSONDecodeError', 'JSONDecoder', 'JSONEncoder']
        >>> get("JSONEncoder").__module__
        'json.encoder'
        >>> get("JSONPrinter")
        Traceback (most recent call last):
        AttributeError: module 'json' has no attribute 'JSONPrinter'
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}
    namespace = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = namespace[name] = getattr(import_module(f"{package}.{home_of[name]}"), name)
        return value

    def names_here() -> list[str]:
        return sorted({*namespace, *home_of})

    return sorted(home_of), get, names_here
