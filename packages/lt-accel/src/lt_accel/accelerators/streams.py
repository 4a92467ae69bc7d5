"""Copies to a CUDA device on a stream of their own.

A copy takes memory that belongs to the side stream, so that it waits for nothing that the device computes. When it is
joined, the allocator learns that the computing stream uses that memory too (``record_stream``): it is used anew only
when the device is past everything that was issued before the last reference was dropped, whoever kept it.

What the user's loader did not pin is pinned here: from memory that is not, a copy of more than 64 KB holds the host
until it is done, while filling pinned memory costs the host one copy of its own and the rest runs beside it. The pinned
memory comes from torch's cache, which hands it out again only when the device has read it.

A small tensor takes the computing stream: its copy lasts a few microseconds there, fewer than the host needs for an
event and for waiting on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["CopyStream"]

_SMALL = 1 << 16  # bytes up to which CUDA itself copies aside what is not pinned, and does not wait


class CopyStream:
    """Side stream of a CUDA device.

    Args:
        device: The device; CUDA is initialised with the first copy.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        self._begun = False  # whether a copy is behind the last mark

    def copy(self, tensor: Tensor) -> Tensor:
        """Begin to copy a tensor of the host, pinned first where that keeps the host free."""
        if tensor.nbytes <= _SMALL:
            return tensor.to(self._device, non_blocking=True)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._begun = True
        if not tensor.is_pinned():
            tensor = tensor.pin_memory()
        with torch.cuda.stream(self._stream):
            return tensor.to(self._device, non_blocking=True)

    def mark(self) -> Any:
        """Return an event behind the copies that were begun since the last mark, or None where there were none."""
        if not self._begun:
            return None
        self._begun = False
        return self._stream.record_event()

    def join(self, mark: Any, tensors: Iterable[Tensor]) -> None:
        """Let the current stream wait for the copies, and keep their memory until it is done with them."""
        if mark is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_event(mark)
        for tensor in tensors:
            tensor.record_stream(current)
