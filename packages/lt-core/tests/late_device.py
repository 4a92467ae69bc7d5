"""Device on the CPU that copies as late as it may: what is read before its copy was joined is visibly wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lt_core.builtin.cpu import CPUAccelerator

WRONG = -77


class LateStream:
    """Side stream whose copies hold `WRONG` until they are joined.

    Args:
        events: Where copies and joins are noted, each with the first element of the tensor.
    """

    def __init__(self, events: list[Any]) -> None:
        self.events = events
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def copy(self, tensor: Tensor) -> Tensor:
        self.events.append(("copy", tensor.flatten()[0].item()))
        copied = torch.full_like(tensor, WRONG)
        self.waiting.append((copied, tensor))
        return copied

    def mark(self) -> list[tuple[Tensor, Tensor]]:
        mark, self.waiting = self.waiting, []
        return mark

    def join(self, mark: list[tuple[Tensor, Tensor]]) -> None:
        for copied, tensor in mark:
            copied.copy_(tensor)
            self.events.append(("join", tensor.flatten()[0].item()))


class LateAccelerator(CPUAccelerator):
    """CPU that passes for a device with a side stream."""

    name = "late"

    def __init__(self) -> None:
        self.events: list[Any] = []

    def side_stream(self, device: torch.device) -> LateStream | None:
        return LateStream(self.events) if device.type == "cpu" else None
