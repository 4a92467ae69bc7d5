"""Read a checkpoint in whichever format it was written.

The reader is found by trying: the trainer's own format, those that trainers of this process were given, ours, that
of ``torch.save``, and that of plain weights. A format refuses what is not its own; nothing in a file is run to find
out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from lt_core.checkpoint.format.plain import PlainWeights
from lt_core.checkpoint.format.safetensors_io import MapLocation, SafetensorsIO, device_of, load_checkpoint
from lt_core.checkpoint.format.torch_io import TorchCheckpointIO, is_torch_file
from lt_core.data.nested import move_to_device
from lt_interface import KeepsObjects

__all__ = ["load", "peek", "remember", "verify"]

T = TypeVar("T")
_MOST = 8
_given: list[Any] = []


def remember(io: Any) -> None:
    """Note a format that a trainer was given, so that what it wrote can be read without a trainer, too.

    Those of this package are known anyway, and what one of them was allowed is not to be allowed elsewhere.
    """
    kind = type(getattr(io, "given", io))
    if kind.__module__.startswith("lt_core."):
        return
    _given[:] = [io, *(one for one in _given if type(getattr(one, "given", one)) is not kind)][:_MOST]


def load(
    path: str | os.PathLike[str], own: Any = None, trusted: bool = False, map_location: MapLocation = None
) -> dict[str, Any]:
    """Return the tree of a checkpoint.

    Args:
        path: The file or folder.
        own: The trainer's format, which is tried first; None where there is no trainer.
        trusted: Whether objects in the file may be made, which runs what it says.
        map_location: Where tensors go, as for ``torch.load``; the CPU if None.

    Raises:
        CheckpointError: If no format reads it; the error is that of the most likely one.
    """

    def read(io: Any) -> dict[str, Any]:
        if type(io) is SafetensorsIO:
            return load_checkpoint(path, map_location)
        found = io.load_trusted(os.fspath(path)) if trusted and isinstance(io, KeepsObjects) else io.load(path)
        if not isinstance(found, dict):
            raise TypeError(f"{type(io).__name__}.load: it must return a dict")
        device = device_of(map_location)
        return found if device.type == "cpu" else move_to_device(found, device)

    return _first(path, own, read)


def peek(path: str | os.PathLike[str], own: Any = None) -> dict[str, Any]:
    """Return the header of a checkpoint, see `load`."""
    return _first(path, own, lambda io: dict(io.peek(path)))


def verify(path: str | os.PathLike[str], own: Any = None) -> None:
    """Check every byte of a checkpoint with the format that reads its header, see `load`."""

    def check(io: Any) -> None:
        io.peek(path)
        if hasattr(io, "verify"):
            io.verify(path)

    _first(path, own, check)


def _first(path: str | os.PathLike[str], own: Any, read: Callable[[Any], T]) -> T:
    """Return what the first format reads that can."""
    torchs, ours = TorchCheckpointIO(), SafetensorsIO()
    if type(own) in (TorchCheckpointIO, SafetensorsIO):
        torchs, ours = (own, ours) if isinstance(own, TorchCheckpointIO) else (torchs, own)
        own = None
    builtin: list[Any] = [torchs, ours] if is_torch_file(path) else [ours, torchs]
    likely = builtin[0] if own is None else own
    errors: dict[int, Exception] = {}
    for io in [one for one in (own, *_given) if one is not None] + [*builtin, PlainWeights()]:
        try:
            return read(io)
        except MemoryError:
            raise
        except Exception as error:  # a format that the file is not of may raise whatever it likes
            errors.setdefault(id(io), error)
    raise errors[id(likely)]
