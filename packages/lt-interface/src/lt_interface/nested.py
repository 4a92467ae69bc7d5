"""Walk nested batches: one rule for every package says what a collection is.

It is a list, a tuple, a named tuple, a mapping or a dataclass. All else is a leaf, whatever it holds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from operator import is_
from typing import Any

__all__ = ["items_of", "map_items", "rebuilt"]


def items_of(data: Any) -> Mapping[Any, Any] | None:
    """Return the items of a collection by index, key or attribute's name; None for a leaf.

    Args:
        data: The collection, or a leaf.

    Example:
        >>> items_of(["a", "b"]), items_of("ab")
        ({0: 'a', 1: 'b'}, None)
    """
    if isinstance(data, list | tuple):
        return dict(enumerate(data))
    if isinstance(data, Mapping):
        return data
    if is_dataclass(data) and not isinstance(data, type):
        return {f.name: getattr(data, f.name) for f in fields(data) if hasattr(data, f.name)}
    return None


def map_items(data: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to the items of a collection, and rebuild it of what comes back.

    Args:
        data: The collection; a leaf comes back as it is.
        function: Called with each item, which may be a collection again.

    Returns:
        A collection of the same kind; the same object if no item changed.

    Example:
        >>> map_items({"a": 1, "b": (2, 3)}, lambda item: item * 2)
        {'a': 2, 'b': (2, 3, 2, 3)}
    """
    kind = type(data)
    if kind is tuple or kind is list:  # most batches: without the walk's own bookkeeping
        values = kind(map(function, data))
        return data if all(map(is_, values, data)) else values
    items = items_of(data)
    if items is None:
        return data
    new = {key: function(item) for key, item in items.items()}
    return data if all(map(is_, new.values(), items.values())) else rebuilt(data, new)


def rebuilt(old: Any, items: dict[Any, Any]) -> Any:
    """Return a collection of the same kind with other items; a plain one where that kind refuses them.

    Args:
        old: The collection.
        items: The items, by the keys that `items_of` gives.

    Example:
        >>> rebuilt((1, 2), {0: "a", 1: "b"})
        ('a', 'b')
    """
    if isinstance(old, list | tuple):
        values = list(items.values())
        if type(old) is list:
            return values
        try:
            return type(old)(*values) if hasattr(old, "_fields") else type(old)(values)
        except TypeError:
            return values if isinstance(old, list) else tuple(values)
    if type(old) is dict:
        return items
    if isinstance(old, Mapping):
        return _rebuilt_mapping(old, items)
    new = copy.copy(old)
    for name, item in items.items():
        object.__setattr__(new, name, item)
    return new


def _rebuilt_mapping(old: Any, items: dict[Any, Any]) -> Any:
    """Return a mapping of the kind of ``old`` with other items."""
    try:
        new = copy.copy(old)
        for key, item in items.items():  # some mappings refuse update()
            new[key] = item
        return new
    except TypeError:
        pass
    try:
        return type(old)(items)
    except TypeError:
        return items
