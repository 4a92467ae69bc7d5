"""Match torch's number formats with the names that the safetensors format has for them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

__all__ = ["CODES", "DTYPES", "integer_like", "named", "storable_dtypes", "torch_name"]

# The formats that every safetensors reader since 0.4.5 knows; all others are written as what they are made of.
CODES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
DTYPES = {code: dtype for dtype, code in CODES.items()}

_MORE = {"complex32", "complex64", "complex128"}
_MORE |= {"float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"}
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def torch_name(constant: torch.dtype | torch.layout | torch.memory_format) -> str:
    """Return ``"float32"`` for ``torch.float32``."""
    return str(constant).removeprefix("torch.")


@cache
def named(kind: type[Any]) -> dict[str, Any]:
    """Return by name every dtype, layout or memory format of this torch: a name in a file is only looked up here."""
    return {torch_name(value): value for value in vars(torch).values() if isinstance(value, kind)}


@cache
def storable_dtypes() -> dict[str, torch.dtype]:
    """Return by name the dtypes whose tensors can be kept."""
    more = {name: dtype for name, dtype in named(torch.dtype).items() if name in _MORE}
    return {torch_name(dtype): dtype for dtype in CODES} | more


def integer_like(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype of the same width that every copy kernel takes, bit for bit."""
    return _INTEGERS[dtype.itemsize]
