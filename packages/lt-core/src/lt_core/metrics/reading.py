"""Read logged values that may lie on a device: as seldom as can be, and all with one wait."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from lt_core.metrics.slot import Slot, as_number

__all__ = ["AT_DEMAND", "computed", "floats", "fold"]

AT_DEMAND: Any = object()  # a metric object's step value that is computed when somebody wants it


def computed(slot: Slot) -> float | None:
    """Return a metric object's value, None if it has none yet."""
    value = slot.metric.compute()
    return None if value is None else as_number(slot.name, value)


def fold(slot: Slot) -> None:
    """Add up the values that lie on a device, with one wait for all of them."""
    if slot.chunk:
        floats([], [slot])
    if slot.host:
        slot.chunk = None


def _read(tensors: list[Tensor]) -> list[float]:
    """Return the numbers in 0-dim tensors, with one wait for all of a device, or two where some are whole numbers."""
    found = [0.0] * len(tensors)
    kinds: dict[Any, list[int]] = {}
    for index, tensor in enumerate(tensors):
        kinds.setdefault((tensor.device, tensor.is_floating_point()), []).append(index)
    for places in kinds.values():
        group = [tensors[index] for index in places]
        # The widest format among whole numbers, or among others, holds each of their numbers.
        widest = reduce(torch.promote_types, {tensor.dtype for tensor in group})
        group = [tensor.to(widest) for tensor in group]
        for index, number in zip(places, torch.stack(group).tolist(), strict=True):
            found[index] = float(number)
    return found


def floats(slots: Iterable[Slot], folded: Iterable[Slot] = ()) -> dict[tuple[int, str], float]:
    """Return the slots' last values as floats, and add up what of others lies on a device; one wait for all."""
    tensors = {s.key: s.last for s in slots if isinstance(s.last, Tensor)}
    others = {s.key: computed(s) if s.last is AT_DEMAND else s.last for s in slots if s.key not in tensors}
    values = {key: float(last) for key, last in others.items() if last is not None}
    chunks = [(s, s.chunk) for s in folded if s.chunk]
    numbers = iter(_read([*tensors.values(), *(value for _, chunk in chunks for value, _ in chunk)]))
    values |= {key: next(numbers) for key in tensors}
    for slot, chunk in chunks:
        slot.chunk = []
        for _, weight in chunk:
            slot.accumulate(next(numbers), weight)
    return values
