"""World of a process: its place among its peers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["World"]


@dataclass(frozen=True)
class World:
    """Place of this process among its peers.

    Attributes:
        rank: Number of this process among all, from 0.
        size: Number of all processes.
        local_rank: Number of this process on its node, from 0.
        local_size: Number of processes on this node.
        node_rank: Number of this node, from 0.
        data_rank: Number of this process among those that receive *different samples*; peers of one
            tensor-parallel group share it.
        data_size: How many different shares of the data there are.

    Example:
        >>> world = World(rank=3, size=4, local_rank=1, local_size=2, node_rank=1, data_rank=1, data_size=2)
        >>> world.is_global_zero
        False
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node_rank: int = 0
    data_rank: int = 0
    data_size: int = 1

    @property
    def is_global_zero(self) -> bool:
        """Return whether this is rank 0 of all processes."""
        return self.rank == 0
