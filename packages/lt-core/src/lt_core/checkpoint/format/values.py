"""Keep the small values that JSON has no form for: one tag, one way to write and one way to read each."""

from __future__ import annotations

import datetime
import math
import pathlib
import struct
import sys
import uuid
from collections.abc import Callable
from typing import Any

import torch

from lt_core.checkpoint.format.dtypes import named, torch_name

__all__ = ["READERS", "WRITERS", "numpy_dtype", "write_float", "write_foreign"]

_NUMPY_KINDS = "biufcmMSU"


def write_float(value: float) -> Any:
    """Return a float for JSON, its bits in a tag where JSON has no number for it."""
    return value if math.isfinite(value) else {"$": "float", "v": struct.pack(">d", value).hex()}


def read_float(value: Any) -> float:
    """Return the float that `write_float` wrote."""
    if isinstance(value, dict):
        value = _unpack_double(value["v"])
    if type(value) not in (float, int):
        raise ValueError("no number")
    return float(value)


def _unpack_double(text: str) -> float:
    return float(struct.unpack(">d", bytes.fromhex(text))[0])


def _ints(value: Any, low: int, high: int) -> list[Any]:
    if not isinstance(value, list) or not low <= len(value) <= high:
        raise ValueError("no list of the right length")
    if any(v is not None and type(v) is not int for v in value):
        raise ValueError("no whole numbers")
    return value


def _read_timezone(value: Any) -> datetime.timezone:
    offset, name = value
    delta = datetime.timedelta(*_ints(offset, 3, 3))
    return datetime.timezone(delta) if name is None else datetime.timezone(delta, name)


def _delta(value: datetime.timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _write_timezone(value: datetime.timezone) -> Any:
    named = len(value.__getinitargs__()) > 1  # type: ignore[attr-defined]
    return [_delta(value.utcoffset(None)), value.tzname(None) if named else None]


def _write_datetime(value: datetime.datetime) -> Any:
    if value.tzinfo is not None and type(value.tzinfo) is not datetime.timezone:
        raise ValueError("its time zone is not a fixed offset")
    zone = None if value.tzinfo is None else _write_timezone(value.tzinfo)
    return [value.replace(tzinfo=None).isoformat(), value.fold, zone]


def _read_datetime(value: Any) -> datetime.datetime:
    text, fold, zone = value
    tzinfo = None if zone is None else _read_timezone(zone)
    return datetime.datetime.fromisoformat(text).replace(fold=fold, tzinfo=tzinfo)


def _write_time(value: datetime.time) -> Any:
    if value.tzinfo is not None:
        raise ValueError("it has a time zone")
    return [value.isoformat(), value.fold]


def _read_device(value: Any) -> torch.device:
    kind, index = value
    return torch.device(kind) if index is None else torch.device(kind, index)


def _read_numpy_scalar(value: Any) -> Any:
    import numpy as np

    kind, data = value
    return np.frombuffer(bytes.fromhex(data), dtype=numpy_dtype(kind), count=1)[0]


def numpy_dtype(text: str) -> Any:
    """Return the plain numpy dtype of that name.

    Raises:
        ValueError: If it is structured or holds objects.
    """
    import numpy as np

    if not isinstance(text, str) or len(text) > 32 or text[1:2] not in _NUMPY_KINDS or text[:1] not in "<>|=":
        raise ValueError("no plain numpy dtype")
    dtype = np.dtype(text)
    if dtype.hasobject or dtype.names is not None:
        raise ValueError("no plain numpy dtype")
    return dtype


def write_foreign(value: Any) -> Any:
    """Return the node of a numpy scalar or dtype, a Decimal or a Fraction, or None.

    Their modules are slow to import; where one is not imported, ``value`` is none of its own.
    """
    numpy, decimal, fractions = map(sys.modules.get, ("numpy", "decimal", "fractions"))
    if numpy is not None and isinstance(value, numpy.generic) and value.dtype.kind in "biufcmM":
        return {"$": "npscalar", "v": [value.dtype.str, value.tobytes().hex()]}
    if numpy is not None and isinstance(value, numpy.dtype) and value.kind in _NUMPY_KINDS and value.names is None:
        return {"$": "npdtype", "v": value.str}
    if decimal is not None and type(value) is decimal.Decimal:
        return {"$": "decimal", "v": str(value)}
    if fractions is not None and type(value) is fractions.Fraction:
        return {"$": "fraction", "v": [hex(value.numerator), hex(value.denominator)]}
    return None


def _read_decimal(value: Any) -> Any:
    from decimal import Decimal

    return Decimal(value)


def _read_fraction(value: Any) -> Any:
    from fractions import Fraction

    top, bottom = value
    return Fraction(int(top, 16), int(bottom, 16))


# type -> (tag, payload). Types are matched exactly; the tree handles subclasses.
WRITERS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    bytes: ("bytes", bytes.hex),
    bytearray: ("bytearray", bytearray.hex),
    complex: ("complex", lambda v: [write_float(v.real), write_float(v.imag)]),
    torch.dtype: ("dtype", torch_name),
    torch.device: ("device", lambda v: [v.type, v.index]),
    torch.Size: ("size", list),
    torch.layout: ("layout", torch_name),
    torch.memory_format: ("memory_format", torch_name),
    range: ("range", lambda v: [v.start, v.stop, v.step]),
    pathlib.PurePosixPath: ("pureposixpath", str),
    pathlib.PureWindowsPath: ("purewindowspath", str),
    pathlib.PosixPath: ("path", str),
    pathlib.WindowsPath: ("path", str),
    datetime.datetime: ("datetime", _write_datetime),
    datetime.date: ("date", datetime.date.isoformat),
    datetime.time: ("time", _write_time),
    datetime.timedelta: ("timedelta", _delta),
    datetime.timezone: ("timezone", _write_timezone),
    uuid.UUID: ("uuid", str),
    type(Ellipsis): ("ellipsis", lambda _: None),
}

READERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda v: int(v, 16),
    "str": lambda v: bytes.fromhex(v).decode("utf-8", "surrogatepass"),
    "float": _unpack_double,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda v: complex(read_float(v[0]), read_float(v[1])),
    "dtype": lambda v: named(torch.dtype)[v],
    "device": _read_device,
    "size": lambda v: torch.Size(_ints(v, 0, 1024)),
    "layout": lambda v: named(torch.layout)[v],
    "memory_format": lambda v: named(torch.memory_format)[v],
    "range": lambda v: range(*_ints(v, 3, 3)),
    "pureposixpath": pathlib.PurePosixPath,
    "purewindowspath": pathlib.PureWindowsPath,
    "path": pathlib.Path,
    "datetime": _read_datetime,
    "date": datetime.date.fromisoformat,
    "time": lambda v: datetime.time.fromisoformat(v[0]).replace(fold=v[1]),
    "timedelta": lambda v: datetime.timedelta(*_ints(v, 3, 3)),
    "timezone": _read_timezone,
    "decimal": _read_decimal,
    "fraction": _read_fraction,
    "uuid": uuid.UUID,
    "ellipsis": lambda _: Ellipsis,
    "npscalar": _read_numpy_scalar,
    "npdtype": numpy_dtype,
}
