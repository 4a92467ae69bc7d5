"""Metric objects of tests that gather their values over the ranks themselves, as those of users do."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


class Gathering:
    """Metric object that exchanges its values when it is computed."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.values: list[float] = []

    def update(self, values: list[Any]) -> None:
        self.values.extend(values)

    def gathered(self) -> list[float]:
        """Return the values of every rank."""
        found: list[Any] = [self.values]
        if dist.is_initialized():
            found = [None] * dist.get_world_size()
            dist.all_gather_object(found, self.values)
        return [value for part in found for value in part]

    def compute(self) -> float:
        """Return the mean of all ranks' values."""
        found = self.gathered()
        return sum(found) / len(found)


class GatheringSum(Gathering):
    """The same for the sum."""

    def compute(self) -> float:
        """Return the sum of all ranks' values."""
        return float(sum(self.gathered()))
