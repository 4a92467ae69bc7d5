"""Read and write the table at the start of a file: the safetensors header, with checksums of everything.

The file is a plain safetensors file: eight bytes of length, a JSON header, the tensors' bytes. The header's
``__metadata__`` begins with a CRC-32 of the length and the header themselves (taken with this field as zeros),
then one of each tensor in file order, so that any changed bit is noticed and its tensor named.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any, BinaryIO

from lt_core.checkpoint.format.dtypes import DTYPES
from lt_core.checkpoint.format.refusal import damaged
from lt_interface.errors import CheckpointError, Problem, nearest
from lt_interface.paths import path_problem

__all__ = ["FORMAT", "Entry", "Header", "Table", "checked_json", "open_checkpoint", "read_header"]

FORMAT = 1
LIMIT = 100_000_000  # the largest header that any safetensors reader takes
CHUNK = 1 << 20
_PREFIX = b'{"__metadata__":{"lt_crc32":"'
_NEXT = b'","lt_tensor_crc32":"'
_CRC = slice(8 + len(_PREFIX), 16 + len(_PREFIX))  # where the header's own checksum stands
_WIDTHS = {code: dtype.itemsize for code, dtype in DTYPES.items()}
_FIRST = 248  # the first byte of each file: so torch.load refuses all of them in the same words; 8 divides it
_ZIP, _PICKLE, _PROTOCOLS = b"PK\x03\x04", b"\x80", b"\x02\x03\x04\x05"


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: its format, shape and bytes ``[start, end)`` after the header."""

    name: str
    code: str
    shape: tuple[int, ...]
    start: int
    end: int


class Table:
    """Layout of a file, and its header, rendered once the checksums are known.

    Args:
        blobs: Name, format, shape and size of each tensor.
        metadata: More strings for ``__metadata__``.

    Raises:
        CheckpointError: If the header is longer than the format allows.
    """

    def __init__(self, blobs: list[tuple[str, str, tuple[int, ...], int]], metadata: dict[str, str]) -> None:
        # Wide formats first keeps every tensor aligned, as the safetensors library lays its own files out.
        ordered = sorted(blobs, key=lambda blob: -_WIDTHS[blob[1]])
        starts = list(accumulate((size for *_, size in ordered), initial=0))
        placed = zip(ordered, starts[:-1], strict=True)
        self.entries = [Entry(name, code, shape, at, at + size) for (name, code, shape, size), at in placed]
        first = {"lt_crc32": "0" * 8, "lt_tensor_crc32": "0" * (8 * len(ordered)), "format": "pt"}
        document: dict[str, Any] = {"__metadata__": {**first, **metadata}}
        for entry in self.entries:
            document[entry.name] = {"dtype": entry.code, "shape": entry.shape, "data_offsets": [entry.start, entry.end]}
        header = json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")
        header += b" " * ((_FIRST - len(header)) % 256)
        if len(header) > LIMIT:
            rule = f"a header may have {LIMIT} bytes"
            raise CheckpointError(Problem("checkpoint", rule, str(len(header)), "Keep fewer single tensors."))
        self._bytes = bytearray(len(header).to_bytes(8, "little") + header)
        self.size = len(self._bytes) + starts[-1]

    def render(self, checksums: list[int] | None = None) -> bytes:
        """Return the length and the header; without checksums, of the same size."""
        if checksums is not None:
            digits = "".join(f"{checksum:08x}" for checksum in checksums).encode()
            start = _CRC.stop + len(_NEXT)
            self._bytes[start : start + len(digits)] = digits
            self._bytes[_CRC] = _own_checksum(self._bytes)
        return bytes(self._bytes)


@dataclass(frozen=True)
class Header:
    """Start of a file, read and checked.

    Attributes:
        path: The file.
        metadata: The strings of ``__metadata__``.
        entries: The tensors by name, in file order.
        checksums: CRC-32 of each tensor's bytes, by name.
        start: Where the tensors' bytes begin.
        size: The file's size.
    """

    path: str
    metadata: dict[str, str]
    entries: dict[str, Entry]
    checksums: dict[str, int]
    start: int
    size: int

    def chunks(self, file: BinaryIO, entry: Entry, into: memoryview | None = None) -> Iterator[memoryview]:
        """Yield a tensor's bytes, read into ``into`` or piece by piece into one small buffer.

        Raises:
            CheckpointError: If bytes are missing or were changed.
        """
        file.seek(self.start + entry.start)
        left, checksum, position = entry.end - entry.start, 0, 0
        buffer = memoryview(bytearray(min(left, CHUNK))) if into is None else into
        while left:
            piece = buffer[position : position + CHUNK] if into is not None else buffer[:left]
            count = file.readinto(piece)  # type: ignore[attr-defined]
            if not count:
                raise damaged(self.path, f'the file ends inside the tensor "{entry.name}"')
            checksum = zlib.crc32(piece[:count], checksum)
            yield piece[:count]
            left, position = left - count, position + count
        if checksum != self.checksums[entry.name]:
            rule = f'the bytes of the tensor "{entry.name}" are not those that were written (its checksum differs)'
            raise damaged(self.path, rule)


def open_checkpoint(path: str) -> BinaryIO:
    """Open a file for reading.

    Raises:
        CheckpointError: If it is missing, no regular file or cannot be read.
    """
    if (problem := path_problem(path, path)) is not None:
        raise CheckpointError(problem)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(Problem(path, "a checkpoint is a file", "a folder", "Name the file in it."))
        if not stat.S_ISREG(mode):
            raise CheckpointError(Problem(path, "a checkpoint is a regular file", "a device or pipe"))
        return open(path, "rb", buffering=0)
    except FileNotFoundError as error:
        raise CheckpointError(_missing(path)) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(Problem(path, "this checkpoint cannot be read", str(error))) from error


def read_header(file: BinaryIO, path: str) -> Header:
    """Read and check the start of a file.

    Raises:
        CheckpointError: If it is no checkpoint, damaged, unsafe or too new.
    """
    size = os.fstat(file.fileno()).st_size
    raw = file.read(8 + len(_PREFIX))
    _refuse_strangers(path, raw, size)
    length = int.from_bytes(raw[:8], "little")
    if length > min(size - 8, LIMIT):
        raise damaged(path, "the file is truncated or its start is damaged", f"{size} bytes, a header of {length}")
    raw += _read_exactly(file, 8 + length - len(raw), path)
    if _own_checksum(raw) != raw[_CRC]:
        raise damaged(path, "the header is not what was written (its checksum differs)")
    document = checked_json(raw[8:], path)
    try:
        metadata = document.pop("__metadata__")
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata must be strings")
        _refuse_newer(path, metadata)
        entries = _entries(document)
        digits = metadata["lt_tensor_crc32"]
        if len(digits) != 8 * len(entries):
            raise ValueError("not one checksum for each tensor")
        checksums = {name: int(digits[8 * i : 8 * i + 8], 16) for i, name in enumerate(entries)}
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, f"the header is not one that this package writes ({error})") from error
    header = Header(path, metadata, entries, checksums, 8 + length, size)
    _check_size(header)
    return header


def _own_checksum(start: bytes | bytearray) -> bytes:
    """Return the checksum of the length and the header, with zeros in its own place."""
    return f"{zlib.crc32(start[: _CRC.start] + b'0' * 8 + start[_CRC.stop :]):08x}".encode()


def checked_json(text: bytes | str, path: str) -> Any:
    """Parse JSON that must be strict: no key twice, no NaN, no bottomless nesting.

    Raises:
        CheckpointError: If it is not.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError, MemoryError) as error:
        raise damaged(path, f"the header holds no valid JSON ({type(error).__name__}: {str(error)[:80]})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _entries(document: dict[str, Any]) -> dict[str, Entry]:
    """Return the tensors in file order; they must cover the data without holes or overlaps."""
    entries = []
    for name, fields in document.items():
        code, shape = fields["dtype"], fields["shape"]
        start, end = fields["data_offsets"]
        if any(type(v) is not int or v < 0 for v in (*shape, start, end)) or len(shape) > 1024:
            raise ValueError(f"{name[:80]}: sizes and offsets must be counts")
        if end - start != prod(shape) * _WIDTHS[code]:
            raise ValueError(f"{name[:80]}: the shape does not fit the bytes")
        entries.append(Entry(name, code, tuple(shape), start, end))
    entries.sort(key=lambda entry: (entry.start, entry.end))
    position = 0
    for entry in entries:
        if entry.start != position:
            raise ValueError(f"{entry.name[:80]}: the data has a hole or overlaps")
        position = entry.end
    return {entry.name: entry for entry in entries}


def _check_size(header: Header) -> None:
    end = header.start + max((entry.end for entry in header.entries.values()), default=0)
    if header.size < end:
        first = next(e for e in header.entries.values() if header.start + e.end > header.size)
        rule = f'the file is truncated: the first tensor that is not whole is "{first.name}"'
        raise damaged(header.path, rule, f"{header.size} of {end} bytes")
    if header.size > end:
        raise damaged(header.path, "the file is longer than its header says", f"{header.size} instead of {end} bytes")


def _read_exactly(file: BinaryIO, count: int, path: str) -> bytes:
    parts = []
    while count > 0:
        part = file.read(min(count, CHUNK))
        if not part:
            raise damaged(path, "the file is truncated in its header")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _refuse_strangers(path: str, raw: bytes, size: int) -> None:
    """Refuse what is no checkpoint of this package."""
    if raw[8:] == _PREFIX:  # first: the length before it may look like anything
        return
    if size == 0:
        raise damaged(path, "the file is empty")
    if raw.startswith(_ZIP) or (raw[:1] == _PICKLE and raw[1:2] in _PROTOCOLS and raw[8:10] != _PREFIX[:2]):
        fix = (
            "A file of PyTorch Lightning: read it once with lt_core.checkpoint.import_lightning(path) "
            "and write it with lt_core.checkpoint.save_checkpoint(tree, new_path)."
        )
        rule = "a checkpoint is never a pickle, since reading one can run code"
        raise CheckpointError(Problem(path, rule, "a pickle (torch.save)", fix))
    if _PREFIX.startswith(raw[8:]):
        raise damaged(path, "the file is truncated in its header", f"{size} bytes")
    if raw[8:9] == b"{":
        fix = "Load weights alone with safetensors.torch.load_file(path)."
        rule = "the header is damaged, or this is a safetensors file of another program"
        raise CheckpointError(Problem(path, rule, "", fix))
    raise CheckpointError(Problem(path, "this is no checkpoint, or its start is damaged", f"{size} bytes"))


def _refuse_newer(path: str, metadata: dict[str, str]) -> None:
    written = int(metadata["lt_format"])
    if written > FORMAT:
        by = metadata.get("lt_versions", "")[:200]
        fix = "Run: pip install --upgrade lt-core"
        rule = f"this file has format {written}, and this lt-core reads formats up to {FORMAT}"
        raise CheckpointError(Problem(path, rule, f"a file written by {by}", fix))


def _missing(path: str) -> str:
    folder, name = os.path.split(os.path.abspath(path))
    try:
        there = sorted(n for n in os.listdir(folder) if not n.startswith("."))
        fix = nearest(name, there) or (f"There are: {', '.join(there[:10])}." if there else "The folder is empty.")
    except OSError:
        fix = "The folder does not exist either."
    return str(Problem(path, "no such checkpoint", "", fix))
