"""torchrun: each process knows its place from the variables of torch's elastic launcher."""

from __future__ import annotations

import os

from lt_accel.clusters.variables import number
from lt_interface import World

__all__ = ["TorchrunCluster"]


class TorchrunCluster:
    """Processes that ``torchrun`` started, on one node or several."""

    name = "torchrun"
    creates_processes = True

    @staticmethod
    def detect() -> bool:
        """Return whether torchrun started this process."""
        return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ

    @property
    def main_address(self) -> str:
        """Return the host of rank 0."""
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """Return the port of rank 0."""
        return number("MASTER_PORT", self.name, 29500)

    def world(self) -> World:
        """Return the place of this process.

        Raises:
            MisconfigurationException: If a variable is missing or no number.
        """
        rank, size = number("RANK", self.name), number("WORLD_SIZE", self.name)
        return World(
            rank=rank,
            size=size,
            local_rank=number("LOCAL_RANK", self.name),
            local_size=number("LOCAL_WORLD_SIZE", self.name, size),
            node_rank=number("GROUP_RANK", self.name, 0),
            data_rank=rank,
            data_size=size,
        )
