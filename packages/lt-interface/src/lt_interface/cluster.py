"""Schedulers: where processes come from and how they find one another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lt_interface.errors import Problem
from lt_interface.world import World

if TYPE_CHECKING:
    from lt_interface.plan import Plan

__all__ = ["ChecksWorld", "ClusterEnvironment", "WatchesTrainer", "as_cluster"]


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
    returns is then that of all ranks. Where several recognise themselves, the one with the highest ``priority`` counts;
    without the attribute that is 0.

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


@runtime_checkable
class ChecksWorld(Protocol):
    """Cluster environment that knows by what it was started with how many processes.

    Example:
        >>> class Farm:
        ...     def problems(self, plan, where):
        ...         fits = plan.processes == 2
        ...         return [] if fits else [Problem(where, "a farm has 2 processes", f"{plan.processes}")]
        >>> isinstance(Farm(), ChecksWorld)
        True
    """

    def problems(self, plan: Plan, where: str) -> Sequence[Problem]:
        """Return what contradicts between that which was started and a plan, each with both sides.

        Args:
            plan: What was decided.
            where: What the user wrote of it.
        """


@runtime_checkable
class WatchesTrainer(Protocol):
    """Cluster environment that takes part in runs, as to save before the job's end.

    Attributes:
        resumes: Whether the job was started again, so that a fit goes on where the job was.

    Example:
        >>> class Farm:
        ...     resumes = False
        ...     def watch(self, trainer):
        ...         trainer.on("fit_start")(lambda trainer: print("the harvest begins"))
        >>> isinstance(Farm(), WatchesTrainer)
        True
    """

    resumes: bool

    def watch(self, trainer: Any) -> None:
        """Attach to a trainer's hooks what the job needs, once it is constructed.

        Args:
            trainer: The trainer.
        """


def as_cluster(given: Any, num_nodes: int | None = None) -> Any:
    """Return a cluster environment with what the core asks for: the given one if it has that itself.

    Args:
        given: One of this interface, or one whose methods have PyTorch Lightning's names, such as ``global_rank``.
        num_nodes: On how many nodes the user said that processes run; None if nothing was said.

    Example:
        >>> class Farm(ClusterEnvironment):
        ...     creates_processes_externally, main_address, main_port = True, "node0", 29500
        ...     def world_size(self):
        ...         return 2
        ...     global_rank = local_rank = lambda self: 1
        ...     node_rank = lambda self: 0
        >>> as_cluster(Farm()).world()
        World(rank=1, size=2, local_rank=1, local_size=2, node_rank=0, data_rank=1, data_size=2)
    """
    own = getattr(type(given), "world", None)
    return _NamedCluster(given, num_nodes) if own in (None, ClusterEnvironment.world) else given


class _NamedCluster:
    """Cluster environment whose methods have PyTorch Lightning's names.

    Where it has not started the processes, their launcher has: then the variables that it set count.

    Such environments do not say how many processes a node has. The first node knows it from the number of nodes alone.

    Args:
        given: The environment.
        num_nodes: The number of nodes, or None.
    """

    resumes = False

    def __init__(self, given: Any, num_nodes: int | None = None) -> None:
        self.given, self.name, self._nodes = given, type(given).__name__, num_nodes
        self._local_size: int | None = None

    def detect(self) -> bool:
        return True

    @property
    def creates_processes(self) -> bool:
        return bool(self.given.creates_processes_externally)

    @property
    def main_address(self) -> str:
        return str(self._launched("MASTER_ADDR") or self.given.main_address)

    @property
    def main_port(self) -> int:
        return int(self._launched("MASTER_PORT") or self.given.main_port)

    def world(self) -> World:
        given, size = self.given, int(self._launched("WORLD_SIZE") or self.given.world_size() or 1)
        rank, local = (
            int(self._launched(name.upper().removeprefix("GLOBAL_")) or getattr(given, name)() or 0)
            for name in ("global_rank", "local_rank")
        )
        node = int(given.node_rank() or 0)
        guess = size // self._nodes if self._nodes else (rank - local) // node if node else size
        local_size = self._local_size or int(os.environ.get("LOCAL_WORLD_SIZE") or guess)
        return World(rank, size, local, local_size, node, data_rank=rank, data_size=size)

    def problems(self, plan: Plan, where: str) -> Sequence[Problem]:
        given, self._local_size = self.given, plan.local_processes
        if self._nodes is None and int(given.node_rank() or 0) and not os.environ.get("LOCAL_WORLD_SIZE"):
            rule, got = "with several nodes their number must be said", f"node_rank() = {given.node_rank()}"
            return [Problem(f"{where}, {self.name}", rule, got, "Set num_nodes=.")]
        if hasattr(given, "validate_settings"):
            given.validate_settings(num_devices=len(plan.devices), num_nodes=plan.num_nodes)
        given.set_world_size(plan.processes)
        given.set_global_rank(int(given.node_rank()) * plan.local_processes + int(given.local_rank()))
        world = self.world()
        rule = "it must have started one process for each device"
        got = f"world_size() = {world.size}, global_rank() = {world.rank}, local_rank() = {world.local_rank}, "
        got += f"for {plan.num_nodes} x {plan.local_processes} devices"
        fits = world.size == plan.processes and world.rank < world.size and world.local_rank < world.local_size
        return [] if fits else [Problem(f"{where}, {self.name}", rule, got, "Set devices= and num_nodes=.")]

    def watch(self, trainer: Any) -> None:
        if hasattr(self.given, "teardown"):
            trainer.on("teardown")(self.given.teardown)

    def _launched(self, variable: str) -> str | None:
        return None if self.creates_processes else os.environ.get(variable)
