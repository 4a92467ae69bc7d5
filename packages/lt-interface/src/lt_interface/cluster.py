"""Say where processes come from and how they find one another."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from lt_interface.world import World

__all__ = ["ClusterEnvironment"]


@runtime_checkable
class ClusterEnvironment(Protocol):
    """Know the scheduler that started this process.

    Attributes:
        name: The name users pass.
        creates_processes: Whether the scheduler starts all ranks, so that no launcher does.
        process_group_ready: Whether a process group stands before the run starts.
        main_address: Host name of rank 0.
        main_port: Port of rank 0.
    """

    name: str
    creates_processes: bool
    process_group_ready: bool
    main_address: str
    main_port: int

    @staticmethod
    def detect() -> bool:
        """Return whether this process was started by this scheduler."""
        ...

    def world(self) -> World:
        """Return who this process is."""
        ...
