"""Decide which bytes of a tree's tensors are written, each once, and bring the tensors back as they were.

Tensors whose memory overlaps form a cluster. A cluster of one tensor is written in its logical order under
the tensor's own name, so that any safetensors reader sees the right values; its strides are noted beside.
A cluster of several is written once: as the tensor that covers it, if one does, else as raw bytes. The
tensors then are views of it again after loading.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from lt_core.checkpoint.format.dtypes import CODES, integer_like, storable_dtypes, torch_name

__all__ = ["Blob", "Blobs", "Materialiser", "raw_bytes"]

# A view that spreads over more memory than this many times its elements comes back dense, so that no small
# file can ask for much memory.
SPREAD = 16
SMALL = 4096
_ALIGN = 16
Layout = tuple[str, tuple[int, ...], tuple[int, ...]]


@dataclass
class Blob:
    """One entry of the file.

    Attributes:
        name: Its name in the file.
        code: The safetensors name of its number format.
        shape: Its shape in the file.
        source: The tensor whose elements, in logical order, are the bytes.
    """

    name: str
    code: str
    shape: tuple[int, ...]
    source: Tensor

    @property
    def nbytes(self) -> int:
        """Return the number of bytes in the file."""
        return self.source.nbytes

    def read(self) -> memoryview:
        """Return the bytes; a tensor elsewhere than on the CPU is copied here first."""
        tensor = self.source.view(integer_like(self.source.dtype))
        return raw_bytes(tensor.cpu().contiguous())

    def copy_into(self, target: Tensor, wait: bool = True) -> None:
        """Copy the bytes into a flat tensor of them, and read that from now on.

        Args:
            target: As many bytes, in the host's memory.
            wait: Whether the copy is done at the return, also where the tensor lies on a device.
        """
        kind, source = integer_like(self.source.dtype), self.source
        view = target.view(kind).view(source.shape)
        if source.device.type == "cpu" and source.is_contiguous():
            # One plain copy: a kernel in several threads waits for cores that data workers hold.
            ctypes.memmove(target.data_ptr(), source.data_ptr(), self.nbytes)
        else:
            view.copy_(source.view(kind), non_blocking=not wait)
        self.source = view


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor."""
    if tensor.numel() == 0:
        return memoryview(b"")
    start = tensor.storage_offset() * tensor.element_size()
    flat = torch.empty(0, dtype=torch.uint8)
    flat.set_(tensor.untyped_storage(), start, (tensor.nbytes,))  # type: ignore[call-overload]
    return flat.numpy().data


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a dense tensor in row-major order."""
    return dense_like(shape, (1,) * len(shape))


def span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Return how many elements lie between the first and the last, both included."""
    return 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def compact(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape without the repetitions of an expanded tensor."""
    return tuple(1 if step == 0 and size > 1 else size for size, step in zip(shape, stride, strict=True))


def orderly(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Return whether no two elements certainly share memory: each stride clears what lies below it."""
    covered = 1
    for step, size in sorted((step, size) for size, step in zip(shape, stride, strict=True) if size > 1):
        if step < covered:
            return False
        covered = step * (size - 1) + covered
    return True


def dense_like(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """Return strides in the same order without gaps; expanded dimensions stay expanded."""
    strides, step = [0] * len(shape), 1
    for axis in sorted(range(len(shape)), key=lambda axis: (stride[axis], -axis)):
        if stride[axis] != 0 or shape[axis] <= 1:
            strides[axis] = step
            step *= max(shape[axis], 1)
    return tuple(strides)


def within_spread(extent: int, count: int) -> bool:
    """Return whether ``extent`` elements of memory are a fair size for ``count`` elements."""
    return extent <= max(SPREAD * count, SMALL)


@dataclass
class _Found:
    """One tensor of the tree, where its memory lies and the node that will name it."""

    name: str
    tensor: Tensor
    node: dict[str, Any]
    low: int = 0
    high: int = 0

    def spec(self) -> tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...]]:
        return self.low, self.tensor.dtype, tuple(self.tensor.shape), self.tensor.stride()


@dataclass
class Blobs:
    """Tensors of a tree, and what is written of them.

    Attributes:
        entries: What is written, by name, in the order of the tree.
        layouts: Number format, shape and strides of each entry that is not simply a tensor of its
            own format in row-major order.
    """

    entries: dict[str, Blob] = field(default_factory=dict)
    layouts: dict[str, Layout] = field(default_factory=dict)
    _found: list[_Found] = field(default_factory=list)
    _raws: int = 0

    def add(self, name: str, tensor: Tensor) -> dict[str, Any]:
        """Take a tensor and return the node that `settle` fills in."""
        tensor = tensor.detach().resolve_conj().resolve_neg()
        node: dict[str, Any] = {"$": "t", "v": None}
        self._found.append(_Found(name.encode("utf-8", "backslashreplace").decode(), tensor, node))
        return node

    def settle(self) -> None:
        """Decide what is written."""
        groups: dict[Any, list[_Found]] = {}
        for index, item in enumerate(self._found):
            groups.setdefault(_memory(item, index), []).append(item)
        for members in groups.values():
            cluster: list[_Found] = []
            high = 0
            for item in sorted(members, key=lambda item: item.low):
                if cluster and item.low >= high:
                    self._write_cluster(cluster)
                    cluster = []
                cluster.append(item)
                high = max(high, item.high)
            self._write_cluster(cluster)
        values = (item.node["v"] for item in self._found)
        names = dict.fromkeys(value if isinstance(value, str) else value[0] for value in values)
        self.entries = {name: self.entries[name] for name in names}
        self._found = []

    def fresh(self, name: str) -> str:
        """Return a name that no entry has yet."""
        unique, count = name or "tensor", 1
        while unique in self.entries or unique == "__metadata__":
            count += 1
            unique = f"{name}#{count}"
        return unique

    def _write_cluster(self, cluster: list[_Found]) -> None:
        specs = {item.spec() for item in cluster}
        whole = next((item for item in cluster if self._covers(item, cluster)), None)
        if len(specs) == 1 and whole is None and _orderly_tensor(cluster[0].tensor):
            whole = cluster[0]
        name, low = self._raw(cluster) if whole is None else (self._own(whole), whole.low)
        for item in cluster:
            if whole is not None and item.spec() == whole.spec():
                item.node["v"] = name
            else:
                width = item.tensor.element_size()
                view = [torch_name(item.tensor.dtype), (item.low - low) // width, list(item.tensor.shape)]
                item.node["v"] = [name, *view, list(item.tensor.stride())]

    @staticmethod
    def _covers(item: _Found, cluster: list[_Found]) -> bool:
        """Return whether ``item`` is dense and all others of its cluster are views of its elements."""
        if not item.tensor.is_contiguous():
            return False
        inside = item.low == cluster[0].low and item.high >= max(other.high for other in cluster)
        return inside and all((other.low - item.low) % other.tensor.element_size() == 0 for other in cluster)

    def _own(self, item: _Found) -> str:
        """Write one tensor in its logical order and note what its shape in the file leaves open."""
        tensor, name = item.tensor, self.fresh(item.name)
        shape, stride = tuple(tensor.shape), tensor.stride()
        small = compact(shape, stride)
        if not within_spread(span(small, stride), prod(small)):
            stride = dense_like(shape, stride)
        if small != shape:
            tensor = tensor[tuple(map(slice, small))]
        code = CODES.get(tensor.dtype)
        if code is None or small != shape or stride != contiguous_strides(shape):
            self.layouts[name] = (torch_name(tensor.dtype), shape, stride)
        if code is None and tensor.is_complex():
            tensor = torch.view_as_real(tensor)
            code, small = CODES[tensor.dtype], (*small, 2)
        elif code is None and tensor.element_size() > 1:
            small = (*small, int(tensor.element_size()))
        self.entries[name] = Blob(name, code or "U8", small, tensor)
        return name

    def _raw(self, cluster: list[_Found]) -> tuple[str, int]:
        """Write the memory of a cluster as it lies, from an aligned byte before it to its end."""
        low = min(item.low for item in cluster) // _ALIGN * _ALIGN
        high = max(item.high for item in cluster)
        storage = max((item.tensor.untyped_storage() for item in cluster), key=lambda s: s.nbytes())
        flat = torch.empty(0, dtype=torch.uint8, device=cluster[0].tensor.device)
        flat.set_(storage, low, (high - low,))  # type: ignore[call-overload]
        name = self.fresh(f"storage.{self._raws}")
        self._raws += 1
        self.entries[name] = Blob(name, "U8", (high - low,), flat)
        return name, low


def _orderly_tensor(tensor: Tensor) -> bool:
    shape, stride = tuple(tensor.shape), tensor.stride()
    return tensor.numel() == 0 or orderly(compact(shape, stride), stride)


def _memory(item: _Found, index: int) -> Any:
    """Return a key of the memory block that holds a tensor, and note the bytes that it spans there."""
    tensor = item.tensor
    if tensor.numel() == 0:
        return index
    width = tensor.element_size()
    item.low = int(tensor.storage_offset()) * width
    item.high = item.low + span(tuple(tensor.shape), tensor.stride()) * int(width)
    try:
        address = tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a device without plain memory, such as XLA's
        return index
    return (str(tensor.device), address) if address else index


@dataclass
class Materialiser:
    """Builder of a file's tensors.

    Attributes:
        layouts: As `Blobs.layouts`, read from the file.
        plain: Number format and shape of each entry, as the file's own table has them.
        fetch: Returns the bytes of an entry as a flat CPU tensor.
    """

    layouts: dict[str, Layout]
    plain: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    fetch: Callable[[str], Tensor]
    _flat: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _base: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def base(self, name: str, device: torch.device) -> Tensor:
        """Return the tensor of an entry; the same one each time."""
        key = (name, str(device))
        if key not in self._base:
            dtype, shape, stride = self._format(name)
            self._base[key] = _strided(self._memory_of(name, device), dtype, 0, shape, stride)
        return self._base[key]

    def view(self, spec: list[Any], device: torch.device) -> Tensor:
        """Return a view of an entry's memory: name, number format, offset, shape, strides."""
        name, kind, offset, shape, stride = spec
        flat = self._memory_of(name, device)
        return _strided(flat, storable_dtypes()[kind], _count(offset), _counts(shape), _counts(stride))

    def _format(self, name: str) -> tuple[torch.dtype, tuple[int, ...], tuple[int, ...]]:
        if name in self.layouts:
            kind, shape, stride = self.layouts[name]
            return storable_dtypes()[kind], _counts(shape), _counts(stride)
        dtype, shape = self.plain[name]
        return dtype, shape, contiguous_strides(shape)

    def _memory_of(self, name: str, device: torch.device) -> Tensor:
        key = (name, str(device))
        if key in self._flat:
            return self._flat[key]
        if device.type != "cpu":
            flat = self._memory_of(name, torch.device("cpu")).to(device)
        else:
            flat = self.fetch(name)
            dtype, shape, stride = self._format(name)
            small = compact(shape, stride)
            count, extent = prod(small), span(small, stride)
            if count * dtype.itemsize != flat.numel():
                raise ValueError(f"the layout of {name} does not fit its bytes")
            if count and not (within_spread(extent, count) and orderly(small, stride)):
                raise ValueError(f"the strides of {name} are not such as are written")
            if count and stride_differs(small, stride):
                kind = integer_like(dtype)
                spread = torch.zeros(extent * dtype.itemsize, dtype=torch.uint8)
                spread.view(kind).as_strided(small, stride).copy_(flat.view(kind).view(small))
                flat = spread
        self._flat[key] = flat
        return flat


def stride_differs(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Return whether elements lie elsewhere than in row-major order."""
    return any(size > 1 and a != b for size, a, b in zip(shape, stride, contiguous_strides(shape), strict=True))


def _strided(flat: Tensor, dtype: torch.dtype, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    if len(shape) != len(stride):
        raise ValueError("a shape and its strides differ in length")
    width = dtype.itemsize
    if (offset + span(shape, stride)) * width > flat.numel() or prod(shape) >= 2**63:
        raise ValueError("a view reaches beyond its memory")
    whole = flat[: flat.numel() // width * width].view(dtype)
    return whole.as_strided(shape, stride, offset)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("an offset, size or stride is no count")
    return value


def _counts(values: Any) -> tuple[int, ...]:
    return tuple(_count(value) for value in values)
