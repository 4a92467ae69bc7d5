"""Walk nested batches: apply a function to what is in them, move them to a device, read off their size."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

__all__ = ["apply_to_collection", "batch_size", "move_to_device"]


def _rebuild_sequence(old: Any, items: list[Any]) -> Any:
    if hasattr(old, "_fields"):
        return type(old)(*items)
    return items if type(old) is list else type(old)(items)


def _rebuild_mapping(old: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    if type(old) is dict:
        return items
    new = copy.copy(old)
    try:
        new.update(items)  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        return type(old)(items)  # type: ignore[call-arg]
    return new


def _rebuild_dataclass(old: Any, items: dict[str, Any]) -> Any:
    new = copy.copy(old)
    for name, value in items.items():
        object.__setattr__(new, name, value)
    return new


def _map_children(data: Any, function: Callable[[Any], Any]) -> Any:
    """Apply ``function`` to the items of a collection; the collection itself comes back if none changed."""
    if isinstance(data, list | tuple):
        items = [function(item) for item in data]
        return data if all(a is b for a, b in zip(items, data, strict=True)) else _rebuild_sequence(data, items)
    if isinstance(data, Mapping):
        pairs = {key: function(item) for key, item in data.items()}
        return data if all(pairs[key] is data[key] for key in pairs) else _rebuild_mapping(data, pairs)
    if is_dataclass(data) and not isinstance(data, type):
        given = {f.name: getattr(data, f.name) for f in fields(data) if hasattr(data, f.name)}
        values = {name: function(value) for name, value in given.items()}
        changed = {name: value for name, value in values.items() if value is not given[name]}
        return _rebuild_dataclass(data, changed) if changed else data
    return data


def apply_to_collection(
    data: Any, dtype: type | tuple[type, ...], function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Apply a function to every object of some type in nested collections.

    Lists, tuples, named tuples, mappings and dataclasses are walked and rebuilt as what they were.

    Args:
        data: The collection, or one object.
        dtype: The type, or types, to which the function applies.
        function: Called as ``function(object, *args, **kwargs)``.
        args: Positional arguments that follow the object.
        kwargs: Keyword arguments.

    Returns:
        A collection of the same form; the same object if nothing in it changed.
    """
    if isinstance(data, dtype):
        return function(data, *args, **kwargs)
    return _map_children(data, lambda item: apply_to_collection(item, dtype, function, *args, **kwargs))


def move_to_device(batch: Any, device: torch.device | str | int) -> Any:
    """Move every tensor of a batch to a device.

    Walks nested lists, tuples, named tuples, mappings and dataclasses, and calls ``.to`` of anything
    that has one (packed sequences, graph batches, ...). Copies do not block the host, except from the
    CPU to MPS, where that is unsafe.

    Args:
        batch: Whatever the loader gave.
        device: Where the tensors go.

    Returns:
        The batch on the device; the same object if nothing had to move.
    """
    target = device if isinstance(device, torch.device) else torch.device(device)
    kind = type(batch)
    if kind is torch.Tensor:
        return batch.to(target, non_blocking=target.type != "mps")
    if kind is list or kind is tuple:
        # The common batch, a flat sequence of tensors, is moved in this one frame.
        free = target.type != "mps"
        tensor = torch.Tensor
        items = [
            item.to(target, non_blocking=free) if type(item) is tensor else move_to_device(item, target)
            for item in batch
        ]
        for new, old in zip(items, batch, strict=True):
            if new is not old:
                return items if kind is list else tuple(items)
        return batch
    if isinstance(batch, torch.Tensor):
        return batch.to(target, non_blocking=target.type != "mps")
    to = getattr(batch, "to", None)
    if callable(to) and not isinstance(batch, type):
        try:
            return to(target, non_blocking=target.type != "mps")
        except TypeError:
            return to(target)
    return _map_children(batch, lambda item: move_to_device(item, target))


def _sizes(batch: Any) -> Iterator[int]:
    if isinstance(batch, torch.Tensor):
        yield batch.size(0) if batch.ndim else 1
    elif isinstance(batch, str | bytes):
        return
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _sizes(value)
    elif is_dataclass(batch) and not isinstance(batch, type):
        for field in fields(batch):
            yield from _sizes(getattr(batch, field.name))
    elif isinstance(batch, Iterable) and not isinstance(batch, Iterator) and not hasattr(batch, "__array__"):
        for value in batch:
            yield from _sizes(value)


def batch_size(batch: Any) -> tuple[int | None, bool]:
    """Find the size of a batch: the first dimension of the first tensor in it.

    Mappings, dataclasses and iterables are walked depth first; a tensor without dimensions counts
    as one sample; strings, arrays of other libraries and iterators are passed over.

    Returns:
        The size, or None if there is no tensor; and whether tensors of other sizes follow.
    """
    first: int | None = None
    for size in _sizes(batch):
        if first is None:
            first = size
        elif size != first:
            return first, True
    return first, False
