"""Keep checkpoints as PyTorch Lightning does: one file of ``torch.save``, in Lightning's own layout.

For programs that ``torch.load`` their files, and for state that holds objects. A file of plain values and tensors
loads with ``weights_only=True``. One that holds objects is a pickle of them: it is read only with
``weights_only=False``, which runs what the file says. Its end holds a checksum of all its bytes, as a comment of the
zip, which other readers pass over.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lt_core.checkpoint.format.container import open_checkpoint
from lt_core.checkpoint.format.durable import AtomicFile
from lt_core.checkpoint.format.lightning_import import as_checkpoint, read_torch
from lt_core.checkpoint.format.lightning_layout import from_layout, header_of, read_with, to_layout
from lt_core.checkpoint.format.refusal import damaged, shorten
from lt_core.checkpoint.format.refused import without_refused
from lt_interface import CheckpointError, Problem

__all__ = ["TorchCheckpointIO", "is_torch_file"]

_ZIP = b"PK\x03\x04"
_END = b"PK\x05\x06"
_NOTE = b"lt-core crc32="
_END_SIZE, _NOTE_SIZE = 22, len(_NOTE) + 8
_CHUNK = 1 << 20


class TorchCheckpointIO:
    """Store of checkpoints in PyTorch Lightning's own layout, each a file of ``torch.save``.

    ``Trainer(plugins=TorchCheckpointIO())`` keeps objects, too, which no other format does. Reading a file that holds
    some runs what it says, so it needs the consent ``weights_only=False``: here, or of ``fit`` and its like.

    Args:
        weights_only: Whether to read plain values and tensors alone.
    """

    collective = False
    #: Whether a save goes on in the background after it has returned.
    asynchronous = False

    def __init__(self, weights_only: bool = True) -> None:
        self.weights_only = weights_only

    def save(self, tree: dict[str, Any], path: str | os.PathLike[str]) -> None:
        """Write the tree, see `save_checkpoint`."""
        self.save_checkpoint(to_layout(tree), os.fspath(path))

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        """Write a checkpoint in Lightning's layout; when this returns, the file is durable.

        Args:
            checkpoint: The checkpoint.
            path: The file.
            storage_options: Not used.

        Raises:
            OSError: If the disk refuses; what was there before stays, and no other file is left.
            CheckpointError: If a value of it cannot be pickled; the message has its path.
        """
        _, problems = without_refused(checkpoint, "checkpoint", _try_pickle)
        if problems:
            raise CheckpointError(problems)
        with AtomicFile(os.fspath(path)) as file:
            noted = _Noted(file.write)
            torch.save(checkpoint, noted)  # type: ignore[arg-type]  # it writes, which is all that is asked for
            noted.close()

    def without_refused(self, tree: dict[str, Any], where: str = "checkpoint") -> tuple[dict[str, Any], list[Problem]]:
        """Return the tree without what cannot be pickled, see `RefusesValues`."""
        return without_refused(tree, where, _try_pickle)

    def load(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the tree of a file of this store or of PyTorch Lightning, its tensors on the CPU.

        Raises:
            CheckpointError: If the file is missing or damaged, or holds objects and the store is not to read them.
        """
        where = os.fspath(path)
        return from_layout(self.load_checkpoint(where), where)

    def load_checkpoint(self, path: str, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Return what is in a file, in Lightning's layout.

        Args:
            path: The file.
            map_location: Where tensors go, as for ``torch.load``; the CPU if None.
            weights_only: Whether to read plain values and tensors alone; as the store was made if None.

        Raises:
            CheckpointError: If the file is missing or damaged, or holds objects that are not to be read.
        """
        return _read(path, self.weights_only if weights_only is None else weights_only, map_location or "cpu")

    def load_trusted(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the tree with the objects in it, which runs what the file says, see `KeepsObjects`."""
        where = os.fspath(path)
        return from_layout(read_with(self.load_checkpoint, where, False), where)

    def peek(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return ``progress``, ``parameters`` and ``keys``; no tensor is read and nothing in the file is run."""
        from lt_core.checkpoint.format.outline import outline

        where = os.fspath(path)
        _check_form(where)
        return header_of(outline(where))

    def verify(self, path: str | os.PathLike[str]) -> None:
        """Check every byte against the checksum; of a file without one, each of its entries against its own.

        Raises:
            CheckpointError: If the file is missing or a byte is wrong.
        """
        where = os.fspath(path)
        noted = _check_form(where)
        with open_checkpoint(where) as file:
            size = os.fstat(file.fileno()).st_size
            if noted is not None:
                found, left = 0, size - 8
                while left > 0 and (piece := file.read(min(_CHUNK, left))):
                    found, left = zlib.crc32(piece, found), left - len(piece)
                bad = None if found == noted else "its bytes"
            else:
                try:
                    with zipfile.ZipFile(file) as archive:
                        bad = archive.testzip()
                except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, zlib.error) as error:
                    bad = str(error)
        if bad is not None:
            raise damaged(where, "the file is not what was written", shorten(bad))

    def remove(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint, see `remove_checkpoint`."""
        self.remove_checkpoint(os.fspath(path))

    def remove_checkpoint(self, path: str) -> None:
        """Delete a checkpoint; one that is not there is no error.

        Args:
            path: The checkpoint.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def wait(self) -> None:
        """Return at once: every save is durable when it returns."""


def is_torch_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a file looks like one of ``torch.save``."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_ZIP)) == _ZIP
    except OSError:
        return False


class _Noted:
    """Writer that adds the checksum of all bytes to the end of a zip file.

    Args:
        write: Writes bytes.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write, self._held, self._checksum = write, b"", 0

    def write(self, data: Any) -> int:
        """Write bytes but for the last ones of the file, which are to be changed."""
        view = memoryview(data).cast("B")
        if len(view) >= _END_SIZE:
            self._give(self._held)
            self._give(view[:-_END_SIZE])
            self._held = bytes(view[-_END_SIZE:])
        else:
            held = self._held + bytes(view)
            self._give(held[:-_END_SIZE])
            self._held = held[-_END_SIZE:]
        return len(view)

    def flush(self) -> None:
        """Do nothing: the file is synced as a whole."""

    def close(self) -> None:
        """Write the end of the zip file, with the checksum as its comment."""
        self._give(self._held[:-2] + _NOTE_SIZE.to_bytes(2, "little") + _NOTE)
        self._write(b"%08x" % self._checksum)

    def _give(self, data: Any) -> None:
        self._checksum = zlib.crc32(data, self._checksum)
        self._write(data)


def _check_form(where: str) -> int | None:
    """Return the checksum that a file notes at its end, or None where it has none.

    Raises:
        CheckpointError: If it is missing, no file of ``torch.save``, or its end is damaged.
    """
    with open_checkpoint(where) as file:
        start = file.read(len(_ZIP))
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _END_SIZE - _NOTE_SIZE, 0))
        end = file.read()
    if start != _ZIP:
        rule = "this is no file of torch.save as a zip, or its start is damaged"
        raise CheckpointError(Problem(where, rule, f"{size} bytes"))
    if end[-_END_SIZE:].startswith(_END) and end.endswith(b"\0\0"):
        return None
    found = re.fullmatch(re.escape(_NOTE) + rb"([0-9a-f]{8})", end[-_NOTE_SIZE:])
    if found is None or not end.startswith(_END):
        raise damaged(where, "the end of the file is damaged or missing", f"{size} bytes")
    return int(found[1], 16)


def _read(where: str, weights_only: bool, map_location: Any) -> dict[str, Any]:
    """Return what ``torch.load`` finds.

    Raises:
        CheckpointError: If it finds nothing that may be read.
    """
    _check_form(where)
    fix = (
        "If you trust it, pass weights_only=False to the call (fit, test, load_from_checkpoint...), or write "
        "Trainer(plugins=TorchCheckpointIO(weights_only=False))."
    )
    found = as_checkpoint(read_torch(where, fix, weights_only, map_location))
    if not isinstance(found, dict):
        raise CheckpointError(Problem(where, "a checkpoint is a dict", type(found).__name__))
    return found


class _Trial(pickle.Pickler):
    """Pickler that leaves tensors out."""

    def persistent_id(self, obj: Any) -> Any:
        """Return a mark for a tensor, in whose place it stands."""
        return "tensor" if isinstance(obj, Tensor) else None


class _Nowhere(io.RawIOBase):
    def write(self, data: Any) -> int:
        return len(data)


def _try_pickle(value: Any, where: str) -> Problem | None:
    """Return what hinders a value from being pickled, or None."""
    try:
        _Trial(_Nowhere(), protocol=2).dump(value)
    except Exception as error:  # whatever an object's own methods raise
        rule = f"this cannot be pickled ({type(error).__name__}: {shorten(str(error), 150)})"
        return Problem(where, rule, shorten(value, 100), "Keep plain values, or what a state_dict() of it returns.")
    return None
