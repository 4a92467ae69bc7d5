"""Turn a tree of Python values and tensors into JSON and blobs of bytes, and back.

Everything that comes back is made by code named here: a file holds tags of a fixed list, never the name of
something to import. What has no tag is refused, with the path to it.
"""

from __future__ import annotations

import argparse
import math
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

import torch
from torch import Tensor

from lt_core.checkpoint.format.blobs import Blob, Blobs, Layout, Materialiser, raw_bytes
from lt_core.checkpoint.format.dtypes import CODES, storable_dtypes
from lt_core.checkpoint.format.refusal import RefusedValueError, Step, dotted, place, shorten
from lt_core.checkpoint.format.values import (
    READERS,
    WRITERS,
    numpy_dtype,
    write_exact_number,
    write_float,
    write_numpy_scalar,
)
from lt_interface import Problem

__all__ = ["Encoded", "clone", "decode", "encode", "soften", "try_encode"]

DEPTH = 100
_KEEP = "Keep numbers, strings, containers of them and tensors, or what a state_dict() of it returns."
_FACTORIES: dict[str, Any] = {"int": int, "float": float, "str": str, "list": list, "dict": dict, "set": set}
_SPARSE = {"sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc"}
_SCALARS = {bool, type(None)}


@dataclass
class Encoded:
    """Tree as it is written.

    Attributes:
        node: The tree for JSON; tensors are named in it.
        entries: The tensors' bytes by name, in the order of the tree.
        layouts: Format, shape and strides of the entries that need them.
    """

    node: Any
    entries: dict[str, Blob]
    layouts: dict[str, Layout]


def encode(tree: Any, where: str = "checkpoint") -> Encoded:
    """Turn a tree into JSON and blobs; no bytes are copied yet.

    Args:
        tree: Any nesting of the values that this module knows.
        where: What the tree is called in errors.

    Raises:
        CheckpointError: If a value cannot be kept; the message has its path.
    """
    encoder = _Encoder(where)
    node = encoder.node(tree, ())
    encoder.blobs.settle()
    return Encoded(node, encoder.blobs.entries, encoder.blobs.layouts)


def try_encode(value: Any, where: str) -> Problem | None:
    """Return what hinders ``value`` from being kept in a checkpoint, or None."""
    try:
        _Encoder(where).node(value, ())
    except RefusedValueError as error:
        return error.problems[0]
    return None


def soften(hparams: Any) -> tuple[Any, list[str]]:
    """Replace what cannot be kept in hyper-parameters by ``{"$repr": repr(value)}``.

    Returns:
        The hyper-parameters as they can be kept, and the dotted names of what was replaced.
    """
    if try_encode(hparams, "hyper_parameters") is None:
        return hparams, []
    names: list[str] = []
    return _soften(hparams, (), names), names


def _filled(space: Any, attributes: dict[Any, Any]) -> Any:
    """Return a namespace with attributes, whatever their names."""
    if not all(isinstance(key, str) for key in attributes):
        raise ValueError("an attribute without a name")
    vars(space).update(attributes)
    return space


def _soften(value: Any, path: tuple[Step, ...], names: list[str]) -> Any:
    if try_encode(value, "") is None:
        return value
    if len(path) < DEPTH // 2:
        if isinstance(value, dict) and all(try_encode(key, "") is None for key in value):
            return {key: _soften(item, (*path, key), names) for key, item in value.items()}
        if isinstance(value, list) or type(value) is tuple:
            parts = [_soften(item, (*path, index), names) for index, item in enumerate(value)]
            return parts if isinstance(value, list) else tuple(parts)
        if isinstance(value, argparse.Namespace):
            return _filled(argparse.Namespace(), _soften(vars(value), path, names))
    names.append(dotted(path))
    return {"$repr": shorten(value, 1000)}


def decode(
    node: Any,
    *,
    layouts: dict[str, Layout],
    plain: dict[str, tuple[torch.dtype, tuple[int, ...]]],
    fetch: Callable[[str], Tensor],
    device: torch.device | None = None,
) -> Any:
    """Build the tree again.

    Args:
        node: As `Encoded.node`.
        layouts: As `Encoded.layouts`.
        plain: Number format and shape of every entry in the file.
        fetch: Returns an entry's bytes as a flat CPU tensor of its own.
        device: Where the tensors go; the CPU if None.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError, ...: If the node is not such as `encode` makes.
    """
    return _Decoder(Materialiser(layouts, plain, fetch), device or torch.device("cpu")).value(node)


def clone(tree: Any, where: str = "checkpoint") -> Any:
    """Return the tree as it would come back from a file: plain values, and tensors of its own on the CPU."""
    encoded = encode(tree, where)
    codes = {code: dtype for dtype, code in CODES.items()}

    def fetch(name: str) -> Tensor:
        data = encoded.entries[name].read()
        flat = torch.empty(len(data), dtype=torch.uint8)
        raw_bytes(flat)[:] = data
        return flat

    plain = {name: (codes[blob.code], blob.shape) for name, blob in encoded.entries.items()}
    return decode(encoded.node, layouts=encoded.layouts, plain=plain, fetch=fetch)


class _Encoder:
    """One walk over a tree: tensors are collected, all else becomes JSON."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.blobs = Blobs()
        self._containers: dict[type, Callable[[Any, tuple[Step, ...]], Any]] = {
            dict: self._dict,
            list: self._list,
            tuple: lambda v, path: _tag("tuple", self._list(v, path)),
            OrderedDict: self._ordered,
            Counter: lambda v, path: _tag("counter", self._items(v, path)),
            defaultdict: self._defaultdict,
            deque: lambda v, path: _tag("deque", [v.maxlen, self._list(v, path)]),
            set: lambda v, path: _tag("set", self._unordered(v, path)),
            frozenset: lambda v, path: _tag("frozenset", self._unordered(v, path)),
            slice: lambda v, path: _tag("slice", self._list([v.start, v.stop, v.step], path)),
            types.SimpleNamespace: lambda v, path: _tag("simplenamespace", self._dict(vars(v), path)),
            argparse.Namespace: lambda v, path: _tag("namespace", self._dict(vars(v), path)),
        }

    def node(self, value: Any, path: tuple[Step, ...]) -> Any:
        """Return the JSON of one value."""
        kind = type(value)
        if kind in _SCALARS:
            return value
        if kind is str:
            return _text(value)
        if kind is int:
            return _whole(value)
        if kind is float:
            return write_float(value)
        if len(path) > DEPTH:
            self._refuse(
                path[:4], f"values may be nested at most {DEPTH} deep", value, "Flatten it; it may hold itself."
            )
        container = self._containers.get(kind)
        if container is not None:
            return container(value, path)
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        writer = WRITERS.get(kind)
        if writer is not None:
            try:
                return _tag(writer[0], writer[1](value))
            except ValueError as error:
                self._refuse(path, f"this {kind.__qualname__} cannot be kept, because {error}", value, _KEEP)
        return self._relative(value, path)

    def _relative(self, value: Any, path: tuple[Step, ...]) -> Any:
        """Keep numpy's values, and an instance of a subclass where its base holds all of it."""
        scalar = write_numpy_scalar(value)
        if scalar is None:
            scalar = write_exact_number(value)
        if scalar is not None:
            return scalar
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray):
            return self._array(value, path)
        if isinstance(value, Enum) and not isinstance(value, (str, int, float)):
            self._refuse(path, "an enum member cannot be kept", value, "Keep its .value.")
        if isinstance(value, int):
            return _whole(int(value))
        if isinstance(value, float):
            return write_float(float(value))
        if isinstance(value, str):
            return _text(str.__str__(value))
        if isinstance(value, bytes):
            return _tag("bytes", value.hex())
        if isinstance(value, (dict, list)) and not getattr(value, "__dict__", None):
            return self._containers[dict if isinstance(value, dict) else list](value, path)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            self._refuse(path, "a named tuple cannot be kept", value, "Keep its ._asdict().")
        return self._refuse(path, f"{_kind(value)} cannot be kept in a checkpoint", value, _KEEP)

    def _refuse(self, path: tuple[Step, ...], rule: str, value: Any, fix: str) -> NoReturn:
        raise RefusedValueError(Problem(place(self.where, path), rule, shorten(value, 100), fix))

    def _list(self, value: Any, path: tuple[Step, ...]) -> list[Any]:
        kinds = set(map(type, value))
        # Long lists of numbers (RNG states, histories) need no look at each.
        if (kinds == {float} and all(map(math.isfinite, value))) or kinds <= _SCALARS:
            return list(value)
        if kinds == {int} and min(value) >= -(2**63) and max(value) < 2**63:
            return list(value)
        return [self.node(item, (*path, index)) for index, item in enumerate(value)]

    def _dict(self, value: dict[Any, Any], path: tuple[Step, ...]) -> Any:
        if all(type(key) is str and not key.startswith("$") and _plain(key) for key in value):
            return {key: self.node(item, (*path, key)) for key, item in value.items()}
        return _tag("dict", self._items(value, path))

    def _items(self, value: dict[Any, Any], path: tuple[Step, ...]) -> list[Any]:
        for key in value:
            if isinstance(key, Tensor):
                self._refuse(path, "a tensor cannot be a key", key, "Use its name.")
        return [[self.node(key, (*path, key)), self.node(item, (*path, key))] for key, item in value.items()]

    def _ordered(self, value: OrderedDict[Any, Any], path: tuple[Step, ...]) -> Any:
        rest = {key: item for key, item in vars(value).items() if key != "_metadata"}
        if rest:
            self._refuse(path, "attributes of an OrderedDict cannot be kept", rest, "Keep them as items.")
        # Module.state_dict() notes the version of each submodule's state so; load_state_dict() reads it.
        metadata = getattr(value, "_metadata", None)
        kept = None if metadata is None else self.node(metadata, (*path, "_metadata"))
        return _tag("ordered", [self._dict(dict(value), path), kept])

    def _defaultdict(self, value: defaultdict[Any, Any], path: tuple[Step, ...]) -> Any:
        factory = value.default_factory
        name = None if factory is None else getattr(factory, "__name__", "")
        if name is not None and _FACTORIES.get(name) is not factory:
            self._refuse(path, "this default_factory cannot be kept", factory, f"Use one of {', '.join(_FACTORIES)}.")
        return _tag("defaultdict", [name, self._items(value, path)])

    def _unordered(self, value: Any, path: tuple[Step, ...]) -> list[Any]:
        if any(isinstance(item, Tensor) for item in value):
            self._refuse(path, "tensors in a set cannot be kept", value, "Use a list.")
        return sorted((self.node(item, (*path, item)) for item in value), key=repr)

    def _tensor(self, value: Tensor, path: tuple[Step, ...]) -> Any:
        rule = _tensor_rule(value)
        if rule:
            got = f"a {type(value).__name__} of layout {value.layout} on {value.device}"
            raise RefusedValueError(Problem(place(self.where, path), rule, got, "Keep a plain tensor."))
        name = str(value.layout).removeprefix("torch.")
        if name == "strided":
            return self.blobs.add(_tensor_name(path), value)
        if name == "sparse_coo":
            parts, flag = [value._indices(), value._values()], value.is_coalesced()
        elif name in {"sparse_csr", "sparse_bsr"}:
            parts, flag = [value.crow_indices(), value.col_indices(), value.values()], False
        else:
            parts, flag = [value.ccol_indices(), value.row_indices(), value.values()], False
        nodes = [self.blobs.add(f"{_tensor_name(path)}.{index}", part) for index, part in enumerate(parts)]
        return _tag("sparse", [name, list(value.shape), flag, nodes])

    def _array(self, value: Any, path: tuple[Step, ...]) -> Any:
        import numpy as np

        if type(value) not in (np.ndarray, np.memmap) or value.dtype.kind not in "biufcmMSU":
            self._refuse(path, f"{_kind(value)} of dtype {value.dtype} cannot be kept", value, _KEEP)
        array, kind = np.asarray(value), ""
        tensor: Tensor | None
        try:
            tensor = torch.from_numpy(array if array.flags.writeable else array.copy(order="K"))
        except (TypeError, ValueError):
            kind, shape = array.dtype.str, list(array.shape)
            try:
                tensor = torch.from_numpy(array.copy())  # such strides are not for tensors
                kind = ""
            except (TypeError, ValueError):
                tensor = torch.frombuffer(bytearray(array.tobytes()), dtype=torch.uint8) if array.nbytes else None
        node = None if tensor is None else self.blobs.add(_tensor_name(path), tensor)
        return _tag("array", [kind, shape, node] if kind else [None, None, node])


class _Decoder:
    """Builder of values from nodes; anything out of form raises."""

    def __init__(self, tensors: Materialiser, device: torch.device) -> None:
        self._tensors = tensors
        self._device = device
        self._cpu = torch.device("cpu")
        self._readers: dict[str, Callable[[Any], Any]] = {
            **READERS,
            "t": lambda v: self._tensor(v, self._device),
            "sparse": self._sparse,
            "array": self._array,
            "dict": lambda v: dict(self._items(v)),
            "tuple": lambda v: tuple(self._list(v)),
            "set": lambda v: set(self._list(v)),
            "frozenset": lambda v: frozenset(self._list(v)),
            "deque": lambda v: deque(self._list(v[1]), v[0]),
            "slice": lambda v: slice(*self._list(v)),
            "counter": lambda v: Counter(dict(self._items(v))),
            "defaultdict": lambda v: defaultdict(None if v[0] is None else _FACTORIES[v[0]], self._items(v[1])),
            "ordered": self._ordered,
            "simplenamespace": lambda v: _filled(types.SimpleNamespace(), self._mapping(v)),
            "namespace": lambda v: _filled(argparse.Namespace(), self._mapping(v)),
        }

    def value(self, node: Any) -> Any:
        """Return the value of one node."""
        if type(node) is dict:
            tag = node.get("$")
            if tag is None:
                return {key: self.value(item) for key, item in node.items()}
            return self._readers[tag](node["v"])
        if type(node) is list:
            return [self.value(item) for item in node]
        return node

    def _list(self, node: Any) -> list[Any]:
        if type(node) is not list:
            raise ValueError("no list")
        return [self.value(item) for item in node]

    def _items(self, node: Any) -> list[tuple[Any, Any]]:
        items = [(self.value(key), self.value(item)) for key, item in node]
        if len(dict(items)) != len(items):
            raise ValueError("a key twice")
        return items

    def _mapping(self, node: Any) -> dict[Any, Any]:
        value = self.value(node)
        if type(value) is not dict:
            raise ValueError("no mapping")
        return value

    def _ordered(self, node: Any) -> OrderedDict[Any, Any]:
        items, metadata = node
        value: OrderedDict[Any, Any] = OrderedDict(self._mapping(items))
        if metadata is not None:
            value._metadata = self.value(metadata)  # type: ignore[attr-defined]
        return value

    def _tensor(self, spec: Any, device: torch.device) -> Tensor:
        return self._tensors.base(spec, device) if isinstance(spec, str) else self._tensors.view(spec, device)

    def _sparse(self, node: Any) -> Tensor:
        name, shape, coalesced, nodes = node
        parts = [self._tensor(part["v"], self._device) for part in nodes]
        if name == "sparse_coo":
            indices, values = parts
            return torch.sparse_coo_tensor(
                indices, values, tuple(shape), check_invariants=True, is_coalesced=bool(coalesced)
            )
        if name not in _SPARSE:
            raise ValueError("no sparse layout")
        first, second, values = parts
        layout = getattr(torch, name)
        return torch.sparse_compressed_tensor(first, second, values, tuple(shape), layout=layout, check_invariants=True)

    def _array(self, node: Any) -> Any:
        import numpy as np

        kind, shape, tensor = node
        if kind is None:
            return self._tensor(tensor["v"], self._cpu).numpy()
        dtype = numpy_dtype(kind)
        if tensor is None:
            return np.empty(tuple(shape), dtype) if 0 in shape or dtype.itemsize == 0 else _raise("no bytes")
        return self._tensor(tensor["v"], self._cpu).numpy().view(dtype).reshape(tuple(shape))


def _raise(text: str) -> Any:
    raise ValueError(text)


def _tag(tag: str, payload: Any) -> dict[str, Any]:
    return {"$": tag, "v": payload}


def _plain(text: str) -> bool:
    """Return whether a string survives JSON: a pair of lone surrogates would come back as one character."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: str) -> Any:
    return value if _plain(value) else _tag("str", value.encode("utf-8", "surrogatepass").hex())


def _whole(value: int) -> Any:
    return value if -(2**63) <= value < 2**63 else _tag("int", hex(value))


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        return f"the function {value.__qualname__}"
    return f"a value of type {type(value).__module__}.{type(value).__qualname__}"


def _tensor_name(path: tuple[Step, ...]) -> str:
    if path[:1] == ("state_dict",):
        return dotted(("model", *path[1:]))
    if path[:1] == ("optimizer_states",):
        return dotted(("optimizers", *path[1:]))
    return dotted(path)


def _tensor_rule(value: Tensor) -> str:
    """Return why a tensor cannot be kept, or an empty string."""
    from torch.nn.parameter import is_lazy
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if is_lazy(value):
        return "a lazy parameter has no values before its first forward"
    if is_traceable_wrapper_subclass(value) or value.is_nested:
        return "a tensor subclass that wraps others cannot be kept"
    if value.device.type == "meta":
        return "a tensor on the meta device has no values"
    if value.is_quantized:
        return "a quantized tensor cannot be kept"
    if value.layout is torch.strided:
        if value.dtype not in storable_dtypes().values():
            return f"a tensor of dtype {value.dtype} cannot be kept"
        if value.device.type in {"cpu", "cuda"} and value.numel() and value.untyped_storage().nbytes() == 0:
            return "a tensor whose memory was freed has no values"
        return ""
    if str(value.layout).removeprefix("torch.") in _SPARSE | {"sparse_coo"}:
        return ""
    return "a tensor of this layout cannot be kept"
