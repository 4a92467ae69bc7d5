"""Say who a process is among its peers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["World"]


@dataclass(frozen=True)
class World:
    """Say who this process is among its peers.

    ``data_rank`` and ``data_size`` count who receives *different samples*: peers of one
    tensor-parallel group share them.
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
