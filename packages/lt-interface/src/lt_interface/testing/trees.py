"""Trees of values such as a checkpoint holds, made and compared."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

__all__ = ["assert_same", "plain_tree", "tensor_tree"]


def plain_tree() -> dict[str, Any]:
    """Return values of every plain type that a checkpoint must keep.

    Example:
        >>> plain_tree()["nested"]["tuple"]
        (1, (2.5, 'x'), ())
    """
    return {
        "none": None,
        "flags": [True, False],
        "numbers": [0, -1, 2**70, 0.1, 1e-320, -0.0, math.inf, -math.inf, math.nan],
        "text": ["", "µ ∀ \n \0", "$", "a.b/c"],
        "bytes": b"\x00\xff",
        "nested": {"list": [[], [1, [2]]], "tuple": (1, (2.5, "x"), ()), "dict": {}},
        "set": {1, 2, 3},
        "keys": {1: "int", (2, "x"): "tuple", None: "none", False: "bool", "1": "text", 2.5: "float"},
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
        "$type": {"$tuple": [1]},
    }


def tensor_tree() -> dict[str, Any]:
    """Return tensors of many formats, shapes and layouts.

    Example:
        ::

            io.save({"state_dict": tensor_tree()}, path)
            assert_same(io.load(path)["state_dict"], tensor_tree())
    """
    import torch

    generator = torch.Generator().manual_seed(3)
    base = torch.randn(4, 6, generator=generator)
    return {
        "float32": base.clone(),
        "float64": base.double(),
        "float16": base.half(),
        "bfloat16": base.bfloat16(),
        "complex64": torch.complex(base, -base),
        "int64": torch.arange(7),
        "uint8": torch.arange(7, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "transposed": base.t(),
        "slice": base[1:3, ::2],
        "nonfinite": torch.tensor([math.nan, math.inf, -math.inf, -0.0]),
        "deep": [(base[0].clone(),), {"x": base[1].clone()}],
        "a.b": base[2].clone(),
        "a": {"b": base[3].clone()},
    }


def assert_same(found: Any, expected: Any, where: str = "tree") -> None:
    """Compare two trees by type, order and value, bit by bit.

    Args:
        found: The tree to check.
        expected: The tree that it must equal.
        where: The path of both, for messages.

    Raises:
        AssertionError: At the first difference; the message has its path.

    Example:
        ``assert_same({"lr": 1}, {"lr": 1.0})`` raises ``AssertionError: tree['lr']: int instead of float``.
    """
    import torch

    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor), f"{where}: {type(found).__name__} instead of a tensor"
        assert found.dtype == expected.dtype, f"{where}: {found.dtype} instead of {expected.dtype}"
        assert found.shape == expected.shape, f"{where}: {tuple(found.shape)} instead of {tuple(expected.shape)}"
        assert _bits(found) == _bits(expected), f"{where}: other values"
        return
    assert type(found) is type(expected), f"{where}: {type(found).__name__} instead of {type(expected).__name__}"
    if isinstance(expected, Mapping):
        assert list(found) == list(expected), f"{where}: keys {list(found)} instead of {list(expected)}"
        for ours, theirs in zip(found, expected, strict=True):
            assert type(ours) is type(theirs), f"{where}: key {ours!r} instead of {theirs!r}"
        for key, value in expected.items():
            assert_same(found[key], value, f"{where}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), f"{where}: {len(found)} entries instead of {len(expected)}"
        for index, value in enumerate(expected):
            assert_same(found[index], value, f"{where}[{index}]")
    elif isinstance(expected, float):
        assert repr(found) == repr(expected), f"{where}: {found!r} instead of {expected!r}"
    else:
        assert found == expected, f"{where}: {found!r} instead of {expected!r}"


def _bits(tensor: Any) -> bytes:
    import torch

    return bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).tolist())
