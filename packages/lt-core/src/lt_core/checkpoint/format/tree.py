"""Turn a tree of Python values and tensors into JSON and blobs of bytes, and back.

Everything that comes back is made by code named here: a file holds tags of a fixed list, never the name of
something to import. What has no tag is refused, with the path to it.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from enum import Enum
from typing import Any, NoReturn

import torch
from torch import Tensor

from lt_core.checkpoint.format.blobs import Blobs, Materialiser, raw_bytes
from lt_core.checkpoint.format.dtypes import DTYPES, storable_dtypes, torch_name
from lt_core.checkpoint.format.refusal import RefusedValueError, Step, dotted, place, shorten
from lt_core.checkpoint.format.values import READERS, WRITERS, numpy_dtype, write_float, write_foreign
from lt_interface import Problem

__all__ = ["clone", "decode", "encode", "soften", "try_encode"]

DEPTH = 100
_KEEP = "Keep numbers, strings, containers of them and tensors, or what a state_dict() of it returns."
_FACTORIES: dict[Any, Any] = {"int": int, "float": float, "str": str, "list": list, "dict": dict, "set": set}
_ROWS = ("crow_indices", "col_indices", "values")
_COLUMNS = ("ccol_indices", "row_indices", "values")
# The methods that return the parts of a sparse tensor.
_SPARSE = {"sparse_coo": ("_indices", "_values"), "sparse_csr": _ROWS, "sparse_bsr": _ROWS}
_SPARSE |= {"sparse_csc": _COLUMNS, "sparse_bsc": _COLUMNS}
_SCALARS = {bool, type(None)}
_BASES: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: lambda value: bytes(memoryview(value)),
}
_SHORT = {"state_dict": "model", "optimizer_states": "optimizers"}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def encode(tree: Any, where: str = "checkpoint") -> tuple[Any, Blobs]:
    """Turn a tree into JSON and blobs; no bytes are copied yet.

    Args:
        tree: Any nesting of the values that this module knows.
        where: What the tree is called in errors.

    Returns:
        The tree for JSON, in which tensors are named, and the tensors.

    Raises:
        CheckpointError: If a value cannot be kept; the message has its path.
    """
    encoder = _Encoder(where)
    node = encoder.node(tree, ())
    encoder.blobs.settle()
    return node, encoder.blobs


def try_encode(value: Any, where: str) -> Problem | None:
    """Return what hinders ``value`` from being kept in a checkpoint, or None; messages say ``where`` it is."""
    try:
        _Encoder(where).node(value, ())
    except RefusedValueError as error:
        return error.problems[0]
    return None


def soften(hparams: Any) -> tuple[Any, list[str]]:
    """Replace what cannot be kept in hyper-parameters by ``{"$repr": repr(value)}``.

    Args:
        hparams: The hyper-parameters, nested as they may be.

    Returns:
        The hyper-parameters as they can be kept, and the dotted names of what was replaced.
    """
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


def decode(node: Any, tensors: Materialiser, device: torch.device | None = None) -> Any:
    """Build the tree again.

    Args:
        node: The tree as `encode` returned it.
        tensors: Builds the tensors that are named in it.
        device: Where the tensors go; the CPU if None.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError, ...: If the node is not such as `encode` makes.
    """
    return _Decoder(tensors, device or torch.device("cpu")).value(node)


def clone(tree: Any) -> Any:
    """Return the tree as it would come back from a file: plain values, and tensors of its own on the CPU."""
    node, blobs = encode(tree, "checkpoint")

    def fetch(name: str) -> Tensor:
        data = blobs.entries[name].read()
        flat = torch.empty(len(data), dtype=torch.uint8)
        raw_bytes(flat)[:] = data
        return flat

    plain = {name: (DTYPES[blob.code], blob.shape) for name, blob in blobs.entries.items()}
    return decode(node, Materialiser(blobs.layouts, plain, fetch))


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
            rule = f"values may be nested at most {DEPTH} deep"
            self._refuse(path[:4], rule, value, "Flatten it; it may hold itself.")
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
        node = write_foreign(value)
        if node is not None:
            return node
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray):
            return self._array(value, path)
        if isinstance(value, Enum) and not isinstance(value, (str, int, float)):
            self._refuse(path, "an enum member cannot be kept", value, "Keep its .value.")
        for base, plain in _BASES.items():
            if isinstance(value, base):
                return self.node(plain(value), path)
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
        whole = kinds == {int} and min(value) >= -(2**63) and max(value) < 2**63
        if whole or (kinds == {float} and all(map(math.isfinite, value))) or kinds <= _SCALARS:
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
        name = getattr(factory, "__name__", None)
        if _FACTORIES.get(name) is not factory:
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
        name, layout = _tensor_name(path), torch_name(value.layout)
        if layout == "strided":
            return self.blobs.add(name, value)
        parts = [getattr(value, part)() for part in _SPARSE[layout]]
        nodes = [self.blobs.add(f"{name}.{index}", part) for index, part in enumerate(parts)]
        coalesced = layout == "sparse_coo" and value.is_coalesced()
        return _tag("sparse", [layout, list(value.shape), coalesced, nodes])

    def _array(self, value: Any, path: tuple[Step, ...]) -> Any:
        import numpy as np

        if type(value) not in (np.ndarray, np.memmap) or value.dtype.kind not in "biufcmMSU":
            self._refuse(path, f"{_kind(value)} of dtype {value.dtype} cannot be kept", value, _KEEP)
        name, array = _tensor_name(path), np.asarray(value)
        for order in ("K", "C"):  # some strides are not for tensors, and some formats neither
            own = array if order == "K" and array.flags.writeable else array.copy(order)
            with contextlib.suppress(TypeError, ValueError):
                return _tag("array", [None, None, self.blobs.add(name, torch.from_numpy(own))])
        flat = torch.frombuffer(bytearray(array.tobytes()), dtype=torch.uint8) if array.nbytes else None
        node = None if flat is None else self.blobs.add(name, flat)
        return _tag("array", [array.dtype.str, list(array.shape), node])


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
        if len(nodes) != len(_SPARSE[name]):
            raise ValueError("not the parts of this layout")
        parts: list[Any] = [self._tensor(part["v"], self._device) for part in nodes]
        options: dict[str, Any] = {"size": tuple(shape), "check_invariants": True}
        if name == "sparse_coo":
            return torch.sparse_coo_tensor(*parts, is_coalesced=bool(coalesced), **options)
        return torch.sparse_compressed_tensor(*parts, layout=getattr(torch, name), **options)

    def _array(self, node: Any) -> Any:
        import numpy as np

        kind, shape, tensor = node
        if kind is None:
            return self._tensor(tensor["v"], self._cpu).numpy()
        dtype = numpy_dtype(kind)
        if tensor is not None:
            return self._tensor(tensor["v"], self._cpu).numpy().view(dtype).reshape(tuple(shape))
        if 0 not in shape and dtype.itemsize:
            raise ValueError("no bytes")
        return np.empty(tuple(shape), dtype)


def _tag(tag: str, payload: Any) -> dict[str, Any]:
    return {"$": tag, "v": payload}


def _plain(text: str) -> bool:
    """Return whether a string survives JSON: a pair of lone surrogates would come back as one character."""
    return text.isascii() or _LONE_SURROGATE.search(text) is None


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
    return dotted((*(_SHORT.get(step, step) for step in path[:1]), *path[1:]))


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
    if value.layout is not torch.strided:
        return "" if torch_name(value.layout) in _SPARSE else "a tensor of this layout cannot be kept"
    if value.dtype not in storable_dtypes().values():
        return f"a tensor of dtype {value.dtype} cannot be kept"
    if value.device.type in {"cpu", "cuda"} and value.numel() and value.untyped_storage().nbytes() == 0:
        return "a tensor whose memory was freed has no values"
    return ""
