"""Walk nested batches: apply a function to what is in them, move them to a device, read off their size.

What a collection is, `lt_interface.nested` says.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import torch

from lt_interface.nested import items_of, map_items

__all__ = [
    "apply_to_collection",
    "batch_size",
    "digest",
    "leaves",
    "move_to_device",
]

_PLAIN = {list, tuple, dict, str}
_OWN_SIZES = ("batch_size", "num_graphs")


def leaves(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of nested collections, depth first, with its path as Python spells it.

    Args:
        data: The collection, or a leaf.
        path: What the paths begin with, such as ``batch`` for ``batch['x'][0]``.
    """
    items = items_of(data)
    if items is None:
        yield path, data
        return
    names = getattr(data, "_fields", None) if isinstance(data, tuple) else None
    for key, item in items.items():
        if names:
            step = f".{names[key]}"
        else:
            step = f"[{key!r}]" if isinstance(data, list | tuple | Mapping) else f".{key}"
        yield from leaves(item, path + step)


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
    return map_items(data, lambda item: apply_to_collection(item, dtype, function, *args, **kwargs))


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
    return map_items(batch, lambda item: move_to_device(item, target))


def _sizes(batch: Any) -> Iterator[int]:
    if isinstance(batch, torch.Tensor):
        yield batch.size(0) if batch.ndim else 1
        return
    if type(batch) not in _PLAIN and (own := _own_size(batch)) is not None:
        yield own
        return
    items = items_of(batch)
    for value in items.values() if items is not None else _items(batch):
        yield from _sizes(value)


def _own_size(batch: Any) -> int | None:
    """Return the size that a batch knows itself: of graphs, the rows of all tensors are nodes and edges."""
    for name in _OWN_SIZES:
        size = getattr(batch, name, None)
        size = size[0] if isinstance(size, tuple) and size else size
        if type(size) is int:
            return size
    return None


def _items(leaf: Any) -> Iterable[Any]:
    """Return the items of a leaf that gives them again and again, and is no string or array."""
    if isinstance(leaf, Iterable) and not isinstance(leaf, (str, bytes, Iterator)) and not hasattr(leaf, "__array__"):
        with suppress(TypeError, NotImplementedError):  # some classes have the method to refuse it
            return iter(leaf)
    return ()


def batch_size(batch: Any) -> tuple[int | None, bool]:
    """Find the size of a batch: what it knows itself, else the first dimension of the first tensor in it.

    What is no plain list, tuple or dict may have a number as ``batch_size`` or ``num_graphs``, as batches of graphs do.
    Mappings, dataclasses and iterables are walked depth first; a tensor without dimensions counts
    as one sample; strings, arrays of other libraries and iterators are passed over.

    Args:
        batch: The batch, nested as it may be.

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


def digest(batch: Any) -> bytes:
    """Return 16 bytes that are the same for equal batches, in other processes too.

    Tensors, arrays and plain values count by their contents, other objects by their attributes.
    """
    found = blake2b(digest_size=16)
    for part in _contents(batch, set()):
        found.update(part)
    return found.digest()


def _contents(data: Any, seen: set[int]) -> Iterator[bytes]:
    """Yield what two equal pieces of data have in common, as bytes."""
    yield f"{type(data).__module__}.{type(data).__qualname__}".encode()
    if isinstance(data, torch.Tensor):
        plain = data.detach().cpu()
        yield f"{plain.dtype}{tuple(plain.shape)}".encode()
        if plain.layout is not torch.strided:
            plain = plain.to_dense()
        plain = plain.dequantize() if plain.is_quantized else plain.resolve_conj().resolve_neg()
        yield plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return
    if data is None or isinstance(data, str | bytes | int | float | complex):
        yield repr(data).encode()
        return
    if id(data) in seen:
        return
    seen.add(id(data))
    items = items_of(sorted(data, key=repr) if isinstance(data, set | frozenset) else data)
    if items is None and not hasattr(data, "__array__"):
        items = getattr(data, "__dict__", None)
    if items is None:
        with suppress(Exception):  # whatever an object of the user's raises: only its type counts then
            yield pickle.dumps(data)
    for key, value in (items or {}).items():
        yield repr(key).encode()
        yield from _contents(value, seen)
