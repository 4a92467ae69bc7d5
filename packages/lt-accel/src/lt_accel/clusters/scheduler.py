"""What all schedulers have in common: a place read from variables, and checked against what was asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from lt_accel.clusters.variables import given, number, port
from lt_interface import MisconfigurationException, Plan, Problem, World
from lt_interface.errors import raise_problems

__all__ = ["SchedulerCluster"]


class SchedulerCluster:
    """Scheduler that starts each rank and describes its place by variables.

    The place is put together from methods that have the names of PyTorch Lightning's cluster environments, so that a
    subclass may replace any of them.

    Attributes:
        name: The name users pass.
        priority: Which one counts where several recognise themselves: the one with the most.
        variables: By method, the variable that it reads.
    """

    name: str
    priority = 0
    variables: ClassVar[Mapping[str, str]] = {
        "global_rank": "RANK",
        "world_size": "WORLD_SIZE",
        "local_rank": "LOCAL_RANK",
        "local_size": "LOCAL_WORLD_SIZE",
        "node_rank": "NODE_RANK",
    }

    @property
    def creates_processes(self) -> bool:
        """Return whether the scheduler has started all ranks."""
        return True

    @property
    def creates_processes_externally(self) -> bool:
        """Return whether the scheduler has started all ranks."""
        return self.creates_processes

    @property
    def main_address(self) -> str:
        """Return the host of rank 0."""
        return os.environ.get("MASTER_ADDR") or "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Return the port of rank 0."""
        return port("MASTER_PORT", self.name, 29500)

    def global_rank(self) -> int:
        """Return this process's number among all."""
        return self._read("global_rank")

    def world_size(self) -> int:
        """Return how many processes there are."""
        return self._read("world_size")

    def local_rank(self) -> int:
        """Return this process's number on its node."""
        return self._read("local_rank")

    def local_size(self) -> int:
        """Return how many processes this node has."""
        return self._read("local_size", self.world_size())

    def node_rank(self) -> int:
        """Return this node's number."""
        return self._read("node_rank", 0)

    def set_world_size(self, size: int) -> None:
        """Keep what the scheduler says; that is compared elsewhere with the ``size`` that was asked for."""

    def set_global_rank(self, rank: int) -> None:
        """Keep what the scheduler says, whatever ``rank`` was asked for."""

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Compare what was started with a number of devices and nodes.

        Args:
            num_devices: Devices of each node.
            num_nodes: Nodes.

        Raises:
            ConfigError: If they do not fit.
        """
        plan = Plan(devices=tuple(range(num_devices)), num_nodes=num_nodes)
        raise_problems(self.problems(plan, f"Trainer(devices={num_devices}, num_nodes={num_nodes})"))

    def teardown(self) -> None:
        """Do nothing: nothing was taken."""

    def world(self) -> World:
        """Return the place of this process.

        Raises:
            ConfigError: If variables are missing, no numbers, or contradict one another; it lists all.
        """
        names = ("global_rank", "world_size", "local_rank", "local_size", "node_rank")
        problems: list[Problem] = []
        rank, size, local_rank, local_size, node = (_tried(getattr(self, name), problems) for name in names)
        for below, above, low, high in (
            ("global_rank", "world_size", rank, size),
            ("local_rank", "local_size", local_rank, local_size),
            ("local_size", "world_size", local_size - 1, size),
        ):
            if not problems and not low < high:
                where = given(self._names(below)) or below
                rule = f"it must be {'at most' if below == 'local_size' else 'below'} {self._said(above, high)}"
                problems.append(Problem(where, rule, given(self._names(*names)), self._again))
        raise_problems(problems)
        return World(rank, size, local_rank, local_size, node, data_rank=rank, data_size=size)

    def problems(self, plan: Plan, where: str) -> Sequence[Problem]:
        """Return what contradicts between that which was started and a plan, each with both sides.

        Args:
            plan: What was decided.
            where: What the user wrote of it.
        """
        problems: list[Problem] = []
        world = self.world()
        if world.size > 1:
            _tried(lambda: self.main_address, problems)
            _tried(lambda: self.main_port, problems)
        got = f"{world.size} processes, {world.local_size} of them on this node"
        said = given(self._names("world_size", "local_size", "nodes"))
        got += f" ({said})" if said else ""
        got += f", for {plan.num_nodes} x {len(plan.devices)} devices"
        fix = f"Leave devices and num_nodes out, or {self.advice(plan.local_processes, plan.num_nodes)}."
        unit = "node" if plan.one_process_per_node else "device"
        if world.size % world.local_size:
            rule = f"{self.name} must have started as many processes on each node"
            problems.append(Problem(where, rule, got, "Ask for the same number on each."))
        elif world.size != plan.processes:
            rule = f"{self.name} must have started one process for each {unit}"
            problems.append(Problem(where, rule, got, fix))
        elif world.local_size != plan.local_processes:
            rule = f"{self.name} must have started one process for each {unit} of this node"
            problems.append(Problem(where, rule, got, fix))
        return problems

    def advice(self, processes: int, nodes: int) -> str:
        """Return how to start so many processes on each of so many nodes, as the end of a sentence.

        Args:
            processes: Processes of each node.
            nodes: Nodes.
        """
        return "start as many processes"

    @property
    def _again(self) -> str:
        return f"Start this program by {self.name}, or unset its variables."

    def _names(self, *methods: str) -> list[str]:
        return [self.variables[method] for method in methods if method in self.variables]

    def _said(self, method: str, value: int) -> str:
        return given(self._names(method)) or f"{value}, the {method.replace('_', ' ')}"

    def _read(self, method: str, default: int | None = None) -> int:
        return number(self.variables[method], self.name, default)


def _tried(find: Callable[[], Any], problems: list[Problem]) -> Any:
    """Return what a function finds; where it raises, note why and return 0."""
    try:
        return find()
    except MisconfigurationException as error:
        problems += [problem for problem in error.problems if problem not in problems]
        return 0
