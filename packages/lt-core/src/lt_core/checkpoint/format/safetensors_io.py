"""Keep checkpoints as one safetensors file each: tensors plainly named, all else as JSON in the header."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lt_core.checkpoint.format.blobs import Blob, Materialiser, raw_bytes
from lt_core.checkpoint.format.container import CHUNK, FORMAT, Header, Table, checked_json, open_checkpoint, read_header
from lt_core.checkpoint.format.dtypes import DTYPES
from lt_core.checkpoint.format.durable import AtomicFile
from lt_core.checkpoint.format.refusal import damaged
from lt_core.checkpoint.format.refused import without_refused
from lt_core.checkpoint.format.signature import parameter_signature
from lt_core.checkpoint.format.tree import decode, encode
from lt_core.version import __version__
from lt_interface import CheckpointError, Problem
from lt_interface.paths import local_path

__all__ = [
    "MapLocation",
    "Prepared",
    "SafetensorsIO",
    "device_of",
    "load_checkpoint",
    "peek",
    "save_checkpoint",
    "verify",
]

MapLocation = str | torch.device | Mapping[str, str] | Callable[[Any, str], Any] | None
_TREE = "lt_tree"
_INLINE = 4 << 20  # a larger tree goes to the data part, where a header's limit does not bind it


@dataclass
class Prepared:
    """Tree that is ready to be written, its tensors not yet copied.

    Attributes:
        document: The tree and the layouts of its tensors, for JSON.
        blobs: What is written of the tensors, in the order of the tree.
        metadata: Progress, versions and the parameters' signature.
    """

    document: dict[str, Any]
    blobs: list[Blob]
    metadata: dict[str, str]


class SafetensorsIO:
    """Store of one process's checkpoints, as one file each."""

    collective = False
    #: Whether a save goes on in the background after it has returned.
    asynchronous = False

    def save(self, tree: dict[str, Any], path: str | os.PathLike[str]) -> None:
        """Write the tree; when this returns, the file is durable.

        Raises:
            OSError: If the disk refuses; what was there before stays, and no other file is left.
            CheckpointError: If a value of the tree cannot be kept; the message has its path.
        """
        self.write(self.prepare(tree), path)

    def prepare(self, tree: dict[str, Any]) -> Prepared:
        """Turn a tree into what is written, without copying tensors.

        Args:
            tree: The checkpoint's dict.

        Raises:
            CheckpointError: If a value of the tree cannot be kept; the message has its path.
        """
        if not isinstance(tree, dict):
            raise CheckpointError(Problem("save_checkpoint(tree)", "a checkpoint is a dict", type(tree).__name__))
        node, found = encode(tree)
        metadata = {
            "lt_format": str(FORMAT),
            "lt_versions": _compact({"lt_core": __version__, "torch": str(torch.__version__)}),
            "lt_progress": _compact(_progress(tree)),
            "lt_keys": _compact([key for key in tree if isinstance(key, str)]),
        }
        if isinstance(tree.get("lt_run"), Mapping):
            metadata["lt_run"] = _compact(dict(tree["lt_run"]))
        weights = tree.get("state_dict")
        if isinstance(weights, Mapping):
            metadata["lt_parameters"] = parameter_signature(weights)
        return Prepared({"tree": node, "layouts": found.layouts}, list(found.entries.values()), metadata)

    def without_refused(self, tree: dict[str, Any], where: str = "checkpoint") -> tuple[dict[str, Any], list[Problem]]:
        """Return the tree without what cannot be kept, see `RefusesValues`."""
        return without_refused(tree, where)

    def write(self, prepared: Prepared, path: str | os.PathLike[str]) -> None:
        """Write what `prepare` returned; when this returns, the file is durable.

        Args:
            prepared: What it returned.
            path: The file.

        Raises:
            OSError: If the disk refuses; what was there before stays, and no other file is left.
        """
        blobs, metadata = list(prepared.blobs), dict(prepared.metadata)
        try:
            text = _compact(prepared.document)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"checkpoint: its values cannot be written as JSON ({error}).") from error
        if len(text) <= _INLINE:
            metadata[_TREE] = text
        else:
            taken, name = {blob.name for blob in blobs}, _TREE
            while name in taken:
                name += "_"
            metadata["lt_tree_entry"] = name
            source = torch.frombuffer(bytearray(text, "ascii"), dtype=torch.uint8)
            blobs.append(Blob(name, "U8", tuple(source.shape), source))
        table = Table([(blob.name, blob.code, blob.shape, blob.nbytes) for blob in blobs], metadata)
        by_name = {blob.name: blob for blob in blobs}
        checksums = []
        with AtomicFile(local_path(f"checkpoint {os.fspath(path)!r}", path), table.size) as file:
            file.write(table.render())
            small = bytearray()
            for entry in table.entries:
                data, checksum = by_name[entry.name].read(), 0
                for start in range(0, len(data), CHUNK):
                    piece = data[start : start + CHUNK]
                    checksum = zlib.crc32(piece, checksum)
                    if len(small) + len(piece) < CHUNK:  # many small tensors make few writes
                        small += piece
                    else:
                        file.write(small)
                        file.write(piece)
                        small = bytearray()
                checksums.append(checksum)
            file.write(small)
            file.rewrite_start(table.render(checksums))

    def load(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the tree, its tensors on the CPU and every byte checked.

        Args:
            path: The file.

        Raises:
            CheckpointError: If the file is missing, damaged, unsafe or too new.
        """
        return load_checkpoint(path)

    def peek(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the header alone, see `peek`."""
        return peek(path)

    def verify(self, path: str | os.PathLike[str]) -> None:
        """Check every byte, see `verify`."""
        verify(path)

    def remove(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def wait(self) -> None:
        """Return at once: every save is durable when it returns."""


def save_checkpoint(tree: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint, atomically and durably.

    Args:
        tree: Any nesting of plain values and tensors, by the familiar names.
        path: The file; folders above it are made.

    Raises:
        OSError: If the disk refuses; what was there before stays, and no other file is left.
        CheckpointError: If a value of the tree cannot be kept; the message has its path.
    """
    SafetensorsIO().save(tree, path)


def load_checkpoint(path: str | os.PathLike[str], map_location: MapLocation = None) -> dict[str, Any]:
    """Return the familiar checkpoint dict of a file; no code found in the file is ever run.

    Args:
        path: The file.
        map_location: Where tensors go, as for ``torch.load``; the CPU if None.

    Raises:
        CheckpointError: If the file is missing, damaged, unsafe or too new.
    """
    where = os.fspath(path)
    device = device_of(map_location)
    with _reading(where) as file:
        header = read_header(file, where)
        document = _document(header, file)

        def fetch(name: str) -> Tensor:
            entry = header.entries[name]
            flat = torch.empty(entry.end - entry.start, dtype=torch.uint8)
            for _ in header.chunks(file, entry, raw_bytes(flat)):
                pass
            return flat

        plain = {name: (DTYPES[entry.code], entry.shape) for name, entry in header.entries.items()}
        try:
            tree = decode(document["tree"], Materialiser(document["layouts"], plain, fetch), device)
            if type(tree) is not dict:
                raise ValueError("the tree is no dict")
        except (CheckpointError, OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a decoder raises, the file is at fault
            rule = f"the tree is not one that this package writes ({type(error).__name__}: {str(error)[:200]})"
            raise damaged(where, rule) from error
        return tree


def verify(path: str | os.PathLike[str]) -> None:
    """Check every byte of a checkpoint against its checksums, in little memory.

    Args:
        path: The checkpoint.

    Raises:
        CheckpointError: If the file is missing, damaged (the tensor is named), unsafe or too new.
    """
    where = os.fspath(path)
    with _reading(where) as file:
        header = read_header(file, where)
        for entry in header.entries.values():
            for _ in header.chunks(file, entry):
                pass


def peek(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what the header of a checkpoint says, reading no tensor.

    Args:
        path: The checkpoint.

    Returns:
        ``format`` (a number), ``versions``, ``progress``, ``run`` (the mark of the run that wrote it, or None),
        ``parameters`` (a signature or None), ``keys`` of the checkpoint dict, ``size`` in bytes, and ``tensors``:
        format and shape of each by name.

    Raises:
        CheckpointError: If the file is missing, not whole, unsafe or too new.
    """
    where = os.fspath(path)
    with _reading(where) as file:
        header = read_header(file, where)
    metadata = header.metadata
    return {
        "format": int(metadata["lt_format"]),
        "versions": checked_json(metadata.get("lt_versions", "{}"), where),
        "progress": checked_json(metadata.get("lt_progress", "{}"), where),
        "run": checked_json(metadata.get("lt_run", "null"), where),
        "parameters": metadata.get("lt_parameters"),
        "keys": checked_json(metadata.get("lt_keys", "[]"), where),
        "size": header.size,
        "tensors": {name: (entry.code, entry.shape) for name, entry in header.entries.items()},
    }


@contextlib.contextmanager
def _reading(path: str) -> Any:
    """Open a file and turn errors of reading into our own."""
    with open_checkpoint(path) as file:
        try:
            yield file
        except OSError as error:
            raise CheckpointError(Problem(path, "this checkpoint cannot be read", str(error))) from error


def _document(header: Header, file: BinaryIO) -> dict[str, Any]:
    text: str | bytes | None = header.metadata.get(_TREE)
    entry = header.entries.get(header.metadata.get("lt_tree_entry", ""))
    if text is None and entry is not None:
        text = b"".join(map(bytes, header.chunks(file, entry)))
    document = None if text is None else checked_json(text, header.path)
    if not isinstance(document, dict) or not isinstance(document.get("layouts"), dict) or "tree" not in document:
        raise damaged(header.path, "the file holds no tree")
    return document


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _progress(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the counters for the header, from the familiar ones where no others are."""
    progress = tree.get("progress")
    if not isinstance(progress, Mapping):
        progress = {"epoch": tree.get("epoch", 0), "step": tree.get("global_step", 0)}
    return {str(key): value for key, value in progress.items() if type(value) in (int, bool, str)}


def device_of(location: MapLocation) -> torch.device:
    """Return the one device that ``map_location`` means for tensors kept without one."""
    if isinstance(location, Mapping):
        location = location.get("cpu")
    elif callable(location):
        # The idiom is lambda storage, name: storage (or storage.cuda(1)).
        kept = location(torch.empty(0).untyped_storage(), "cpu")
        location = None if kept is None else kept.device
    return torch.device("cpu") if location is None else torch.device(location)
