"""Schedulers: where processes come from and how they find one another."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from lt_interface.world import World

__all__ = ["ClusterEnvironment"]


@runtime_checkable
class ClusterEnvironment(Protocol):
    """Scheduler that started this process, such as Slurm or torchrun.

    The core gives it to `Strategy.setup`, which reads rank and address from it.

    Attributes:
        name: The name users pass.
        creates_processes: Whether the scheduler starts all ranks, so that no launcher does.
        main_address: Host name of rank 0.
        main_port: TCP port of rank 0.

    One whose processes a launcher started for a single one has an attribute ``launched = True``: what ``predict``
    returns is then that of all ranks.

    Example:
        >>> import os
        >>> class Farm:
        ...     name, creates_processes = "farm", True
        ...     main_address, main_port = "node0", 29500
        ...     @staticmethod
        ...     def detect():
        ...         return "FARM_RANK" in os.environ
        ...     def world(self):
        ...         return World(rank=int(os.environ["FARM_RANK"]), size=int(os.environ["FARM_SIZE"]))
        >>> isinstance(Farm(), ClusterEnvironment), Farm.detect()
        (True, False)
    """

    name: str
    creates_processes: bool
    main_address: str
    main_port: int

    @staticmethod
    def detect() -> bool:
        """Return whether this scheduler started this process; it reads environment variables alone."""

    def world(self) -> World:
        """Return the place of this process among its peers."""
