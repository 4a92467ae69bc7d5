"""Put batches on the device beside the computing, where the accelerator has a side stream.

A batch is *put* when it is fetched, which begins its copy, and *taken* when its step begins, from which on the
device's computing waits for that copy. Neither waits on the host. The feed puts a batch in front of the step before
its own where nobody can see that it was fetched early (`Leaf.early`); in all other places it is put and taken at once,
and its copy still runs beside the steps that the device has not done yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, strided

from lt_core.data.nested import move_to_device
from lt_interface import SideStream
from lt_interface.nested import map_items

__all__ = ["Stager"]


class Stager:
    """Way of batches to a device through a side stream.

    Tensors in the host's memory take the side stream, but for those that it wants to be moved directly; whatever moves
    itself by a ``to`` of its own, sparse tensors and what lies elsewhere are moved when the batch is taken.

    Args:
        stream: The side stream.
        device: The device.
        convert: Changes a batch's number formats first, or None.

    Attributes:
        seconds: How long this process was busy with putting batches ahead.
    """

    def __init__(self, stream: SideStream, device: torch.device, convert: Callable[[Any], Any] | None = None) -> None:
        self.stream, self.device, self.convert = stream, device, convert
        self.direct: int = getattr(stream, "direct", -1)
        self.seconds = 0.0
        self._rest = False  # whether something in the batch that is being put moves itself, when it is taken

    def put(self, batch: Any) -> Any:
        """Begin to copy a batch; return what `take` needs."""
        if self.convert is not None:
            batch = self.convert(batch)
        # Small tensors side by side, as most short steps have them, in this one frame: behind a step the code of each
        # further one has left the processor's cache, and costs as much as a copy.
        kind = type(batch)
        if kind is tuple or kind is list or kind is dict:
            items, device, direct = batch.values() if kind is dict else batch, self.device, self.direct
            for item in items:
                if type(item) is not Tensor or not item.is_cpu or item.layout is not strided or item.nbytes > direct:
                    break
            else:
                moved = [item.to(device, non_blocking=True) for item in items]
                return dict(zip(batch, moved, strict=True)) if kind is dict else kind(moved), None, False
        self._rest = False
        [placed] = self._staged((batch,))
        return placed, self.stream.mark(), self._rest

    def _staged(self, items: Iterable[Any]) -> list[Any]:
        """Return the items with those in the host's memory replaced by copies that have begun."""
        staged: list[Any] = []
        for item in items:
            kind = type(item)
            if kind is Tensor and item.is_cpu and item.layout is strided and not item.is_nested:
                small = item.nbytes <= self.direct
                staged.append(item.to(self.device, non_blocking=True) if small else self.stream.copy(item))
            elif kind is tuple or kind is list:
                staged.append(kind(self._staged(item)))
            elif callable(getattr(item, "to", None)):
                self._rest = True
                staged.append(item)
            else:
                staged.append(map_items(item, self._staged_one))
        return staged

    def _staged_one(self, item: Any) -> Any:
        return self._staged((item,))[0]

    def take(self, handle: Any) -> Any:
        """Return a batch that was put, to be computed with from now on."""
        placed, mark, rest = handle
        if mark is not None:
            self.stream.join(mark)
        return move_to_device(placed, self.device) if rest else placed

    def __call__(self, batch: Any, dataloader_idx: int = 0) -> Any:
        """Put a batch and take it."""
        return self.take(self.put(batch))

    def ahead(self, fetch: Callable[[], Any]) -> Callable[[], Any]:
        """Return what fetches a batch and puts it, and counts the seconds of the second."""

        def fetched() -> Any:
            batch = fetch()
            begun = time.perf_counter()
            handle = self.put(batch)
            self.seconds += time.perf_counter() - begun
            return handle

        return fetched
