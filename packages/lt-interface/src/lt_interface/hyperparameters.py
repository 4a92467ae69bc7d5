"""Hyper-parameters of any kind, made into what a tracker or a YAML file can hold.

Example:
    >>> from types import SimpleNamespace
    >>> flatten(plain(SimpleNamespace(lr=0.1, net={"width": 3, "act": max})))
    {'lr': 0.1, 'net/width': 3, 'net/act': 'max'}
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

__all__ = ["flatten", "number", "plain", "plain_dict"]


def plain(value: Any) -> Any:
    """Return a value as dicts, lists, text, numbers and None only.

    Namespaces and dataclasses become dicts, callables their names, single-element tensors
    and arrays numbers, everything else its text.

    Args:
        value: Anything, at any depth.

    Example:
        >>> plain({"size": (1, 2), "act": max, 3: None})
        {'size': [1, 2], 'act': 'max', '3': None}
    """
    if value is None or (isinstance(value, (bool, str, int, float)) and not isinstance(value, Enum)):
        return _builtin(value)
    if isinstance(value, Enum):
        return value.name
    mapping = _mapping(value)
    if mapping is not None:
        return {str(key): plain(entry) for key, entry in mapping.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if callable(getattr(value, "item", None)) and getattr(value, "size", None) is not None:
        try:
            return plain(value.item())
        except (ValueError, RuntimeError, TypeError):  # more than one element
            return str(value)
    if callable(value):
        return str(getattr(value, "__name__", None) or type(value).__name__)
    return str(value)


def plain_dict(params: Any) -> dict[str, Any]:
    """Return hyper-parameters as `plain` makes them, in a dict: what is no mapping becomes the entry ``value``.

    Args:
        params: Hyper-parameters of any kind.

    Example:
        >>> plain_dict(0.1)
        {'value': 0.1}
    """
    given = plain(params)
    return given if isinstance(given, dict) else {"value": given}


def flatten(params: Mapping[str, Any], separator: str = "/") -> dict[str, bool | str | int | float]:
    """Return nested hyper-parameters as one level of names; lists and None become text.

    Args:
        params: Hyper-parameters by name, at any depth.
        separator: What joins the names of the levels.

    Example:
        >>> flatten({"net": {"width": 3, "sizes": [1, 2]}}, ".")
        {'net.width': 3, 'net.sizes': '[1, 2]'}
    """
    flat: dict[str, bool | str | int | float] = {}
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            flat.update({f"{key}{separator}{inner}": entry for inner, entry in flatten(value, separator).items()})
        elif isinstance(value, (bool, str, int, float)):
            flat[key] = value
        else:
            flat[key] = str(value)
    return flat


def _builtin(value: Any) -> Any:
    """Return a bare bool, text or number: a subclass of one need not be known to a YAML writer."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    return None


def _mapping(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, type) or callable(value):
        return None
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if type(value).__name__ in {"Namespace", "SimpleNamespace"}:
        return dict(vars(value))
    return None


def number(value: Any) -> float:
    """Return a number, a single-element tensor or an array of one element as a float.

    Args:
        value: The value; an integer too large for a float becomes inf.

    Raises:
        TypeError: If it is none of these; text is refused, even if it reads as a number.

    Example:
        >>> number(True), number(10**400)
        (1.0, inf)
        >>> number("1")
        Traceback (most recent call last):
        TypeError: 1
    """
    if isinstance(value, str):
        raise TypeError(value)
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(repr(value)) from error
