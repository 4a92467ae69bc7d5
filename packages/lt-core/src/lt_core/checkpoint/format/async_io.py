"""Write checkpoints in the background; training waits only for one copy of the tensors in memory."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import pickle
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lt_core.checkpoint.format.lightning_names import as_store
from lt_core.checkpoint.format.safetensors_io import Prepared, SafetensorsIO
from lt_core.checkpoint.format.tree import clone
from lt_interface import CheckpointError, CheckpointIO, KeepsObjects, RefusesValues

__all__ = ["AsyncCheckpointIO"]


_turn = threading.Lock()  # trainers in several threads may share a store, and its copy's memory


class AsyncCheckpointIO:
    """Store that writes checkpoints in a background thread.

    ``save`` returns when the next step may change any tensor; the file is the same, byte for byte, as a direct save
    would write. Tensors in the host's memory are copied by then. Of those on a device the copies, into pinned memory,
    are queued in front of whatever the device computes next, buffers that the next forward pass changes included, and
    the writing thread waits for them. One save is in flight at a time: the next one waits for it. The copy's memory is
    kept for the next save.

    Args:
        checkpoint_io: What writes and reads; `SafetensorsIO` if None.
    """

    #: Whether a save goes on in the background after it has returned.
    asynchronous = True

    def __init__(self, checkpoint_io: CheckpointIO | None = None) -> None:
        self.checkpoint_io: CheckpointIO = SafetensorsIO() if checkpoint_io is None else as_store(checkpoint_io)
        self._thread: threading.Thread | None = None
        self._path = ""
        self._failure: BaseException | None = None
        self._buffer: Tensor | None = None
        for name in ("without_refused", "load_trusted"):  # what the store below is able to do
            if hasattr(self.checkpoint_io, name):
                setattr(self, name, getattr(self.checkpoint_io, name))

    @property
    def collective(self) -> bool:
        """Return whether every rank must call ``save`` and ``load``."""
        return self.checkpoint_io.collective

    @property
    def in_flight(self) -> bool:
        """Return whether a save is being written at this moment."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, tree: dict[str, Any], path: str | os.PathLike[str]) -> None:
        """Copy the tree and begin to write it.

        Raises:
            OSError, CheckpointError: What the save before failed with; this one is then not begun, and may be
                asked for again.
            CheckpointError: If a value of the tree cannot be kept; the message has its path.
        """
        target = os.path.abspath(os.fspath(path))
        with _turn:
            self.wait()
            if isinstance(self.checkpoint_io, SafetensorsIO):
                prepared = self.checkpoint_io.prepare(tree)
                copied = self._stage(prepared)
                job: Callable[[], None] = partial(_write, self.checkpoint_io, prepared, target, copied)
            else:
                own = clone(tree) if not isinstance(self.checkpoint_io, KeepsObjects) else self._copy_of(tree)
                job = partial(self.checkpoint_io.save, own, target)
            self._path = target
            # Not a daemon: Python waits for it before it exits.
            thread = threading.Thread(target=self._run, args=(job,), name="lt-checkpoint")
            thread.start()
            self._thread = thread

    def wait(self) -> None:
        """Return when every save so far is durable.

        Raises:
            OSError, CheckpointError: What the last save failed with; reported once.
        """
        self._join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def load(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the tree, once the save in flight is done."""
        self._join()
        return self.checkpoint_io.load(os.fspath(path))

    def peek(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the header alone, once a save to this path is done."""
        self._join(path)
        return self.checkpoint_io.peek(os.fspath(path))

    def verify(self, path: str | os.PathLike[str]) -> None:
        """Check every byte, once a save to this path is done."""
        self._join(path)
        self.checkpoint_io.verify(os.fspath(path))

    def remove(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint, once a save to this path is done."""
        self._join(path)
        self.checkpoint_io.remove(os.fspath(path))

    def __getstate__(self) -> dict[str, Any]:
        self._join()
        return {**self.__dict__, "_thread": None, "_buffer": None}

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._failure = error

    def _join(self, path: str | os.PathLike[str] | None = None) -> None:
        thread = self._thread
        if thread is None or (path is not None and os.path.abspath(os.fspath(path)) != self._path):
            return
        thread.join()
        self._thread = None

    def _copy_of(self, tree: dict[str, Any]) -> dict[str, Any]:
        problems = self.checkpoint_io.without_refused(tree)[1] if isinstance(self.checkpoint_io, RefusesValues) else []
        if problems:
            raise CheckpointError(problems)
        return _copy_of(tree)

    def _stage(self, prepared: Prepared) -> list[torch.Event]:
        """Copy all tensors into one buffer, and let the blobs read from there once the returned events have come."""
        blobs = sorted(prepared.blobs, key=lambda blob: -blob.source.element_size())  # keeps each aligned
        total = sum(blob.nbytes for blob in blobs)
        devices = {blob.source.device for blob in blobs if blob.source.device.type != "cpu"}
        if self._buffer is None or self._buffer.numel() < total or (devices and not self._buffer.is_pinned()):
            self._buffer = None  # free the old one first
            self._buffer = _allocate(total, pinned=bool(devices))
        queued = bool(devices) and self._buffer.is_pinned()
        position = 0
        with torch.no_grad():
            for blob in blobs:
                size = blob.nbytes
                blob.copy_into(self._buffer[position : position + size], wait=not queued)
                position += size
        return [torch.accelerator.current_stream(device).record_event() for device in devices] if queued else []


def _write(store: SafetensorsIO, prepared: Prepared, target: str, copied: list[torch.Event]) -> None:
    """Write a staged tree, once its copies are done."""
    for event in copied:
        event.synchronize()
    store.write(prepared, target)


def _copy_of(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a tree, objects included, its tensors on the CPU."""
    tensors: list[Tensor] = []

    class Writer(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if isinstance(obj, Tensor):
                tensors.append(obj)
                return len(tensors) - 1
            return None

    class Reader(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            return copies[pid]

    stream = io.BytesIO()
    Writer(stream).dump(tree)
    memo = {id(tensor): tensor.detach().to("cpu", copy=True) for tensor in tensors}
    copies = [memo[id(tensor)] for tensor in tensors]
    stream.seek(0)
    copied: dict[str, Any] = Reader(stream).load()
    return copied


def _allocate(size: int, pinned: bool) -> Tensor:
    """Return memory for a copy; in huge pages, since touching new small ones costs ten times the copy."""
    if pinned:
        with contextlib.suppress(RuntimeError, NotImplementedError):  # a device that has no use for pinned memory
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    if size < 1 << 22 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them
        return torch.empty(size, dtype=torch.uint8)
    return torch.frombuffer(memory, dtype=torch.uint8)
