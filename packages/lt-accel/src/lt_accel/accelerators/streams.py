"""Copies to a CUDA device on a stream of their own.

A copy takes memory that belongs to the side stream, so that it waits for nothing that the device computes. When it is
joined, the allocator learns that the computing stream uses that memory too (``record_stream``): it is used anew only
when the device is past everything that was issued before the last reference was dropped, whoever kept it.

What the user's loader did not pin is pinned here: from memory that is not, a copy of more than 64 KB holds the host
until it is done, while filling pinned memory costs the host one copy of its own and the rest runs beside it. The pinned
memory comes from torch's cache, which hands it out again only when the device has read it.

A small tensor is to take the computing stream: its copy lasts a few microseconds there, fewer than the host needs for
an event and for waiting on it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["CopyStream"]


class CopyStream:
    """Side stream of a CUDA device.

    Args:
        device: The device; CUDA is initialised with the first copy.

    Attributes:
        direct: Bytes up to which CUDA itself copies aside what is not pinned, and does not wait.
    """

    direct = 1 << 16

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        self._copied: list[Tensor] = []  # behind the last mark

    def copy(self, tensor: Tensor) -> Tensor:
        """Begin to copy a tensor of the host, pinned first where that keeps the host free."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        if not tensor.is_pinned():
            tensor = tensor.pin_memory()
        with torch.cuda.stream(self._stream):
            copied = tensor.to(self._device, non_blocking=True)
        self._copied.append(copied)
        return copied

    def mark(self) -> Any:
        """Return an event behind the side stream's copies since the last mark, and these; None where there are none."""
        if not self._copied:
            return None
        copied, self._copied = self._copied, []
        return self._stream.record_event(), copied

    def join(self, mark: Any) -> None:
        """Let the current stream wait for the copies, and keep their memory until it is done with them."""
        event, copied = mark
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        for tensor in copied:
            tensor.record_stream(current)
