"""No scheduler: ranks that a launcher starts, or that the user starts by hand with their variables set."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lt_accel.clusters.scheduler import SchedulerCluster
from lt_accel.clusters.variables import given, number, port
from lt_accel.launchers.place import MARK
from lt_interface import MisconfigurationException, Plan, Problem

__all__ = ["EnvironmentCluster", "hand_problems"]

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
_HAND = "Set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for each process, or unset them all."


class EnvironmentCluster(SchedulerCluster):
    """Processes that no scheduler started: passed as a plugin, it keeps the trainer from taking one for theirs."""

    name = "environment"

    @staticmethod
    def detect() -> bool:
        """Return whether the user started this process by hand as one of several."""
        return MARK not in os.environ and "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") not in ("", "1")

    @property
    def creates_processes(self) -> bool:
        """Return whether the user started this process by hand as one of several."""
        return self.detect()

    def global_rank(self) -> int:
        """Return this process's number among all; 0 where there is one."""
        return self._read("global_rank", 0)

    def world_size(self) -> int:
        """Return how many processes there are; 1 where nothing says more."""
        return self._read("world_size", 1)

    def local_rank(self) -> int:
        """Return this process's number on its node."""
        return self._read("local_rank", self.global_rank() % max(self.local_size(), 1))

    def node_rank(self) -> int:
        """Return this node's number."""
        return self._read("node_rank", self.global_rank() // max(self.local_size(), 1))


def hand_problems(where: str, plan: Plan, starts: bool = False) -> Sequence[Problem]:
    """Return what contradicts in variables that no scheduler set, and between them and a plan.

    ``WORLD_SIZE`` without ``RANK`` may be the number of nodes, each of which starts its ranks.

    Args:
        where: Start of the message.
        plan: What was decided.
        starts: Whether this process is about to start the ranks.
    """
    if MARK in os.environ:
        return []
    found: list[Problem] = []
    values: dict[str, int] = {}
    for name in _NAMES:
        if os.environ.get(name, "") == "" or name == "MASTER_ADDR":
            continue
        try:
            values[name] = (port if name == "MASTER_PORT" else number)(name, "whoever starts the processes")
        except MisconfigurationException as error:
            found += [Problem(p.where, p.rule, p.got, _HAND) for p in error.problems]
    rank, size, nodes = values.get("RANK"), values.get("WORLD_SIZE"), plan.num_nodes
    local = values.get("LOCAL_WORLD_SIZE", plan.local_processes)
    is_node = rank is None and "NODE_RANK" in values and size in (nodes, plan.processes)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    checks = [
        (
            rank is not None and size == plan.processes > 1 and missing,
            "RANK",
            f"{' and '.join(missing)} must be set beside it",
        ),
        (rank is not None and not os.environ.get("WORLD_SIZE"), "RANK", "WORLD_SIZE must be set beside it"),
        (
            size not in (None, 1) and not os.environ.get("RANK") and not is_node,
            "WORLD_SIZE",
            f"RANK must be set beside it, or NODE_RANK and num_nodes={size} in each node's program",
        ),
        (
            "LOCAL_RANK" in values and not os.environ.get("RANK"),
            "LOCAL_RANK",
            "RANK and WORLD_SIZE must be set beside it",
        ),
        (rank is not None and size is not None and rank >= size, "RANK", f"it must be below WORLD_SIZE={size}"),
        (values.get("LOCAL_RANK", 0) >= local, "LOCAL_RANK", f"it must be below {local}, the processes of a node"),
        (
            local != plan.local_processes and size == plan.processes,
            "LOCAL_WORLD_SIZE",
            f"it must be {plan.local_processes}, the devices of a node",
        ),
        (values.get("NODE_RANK", 0) >= nodes, "NODE_RANK", f"it must be below num_nodes={nodes}"),
    ]
    found += [Problem(name, rule, given(_NAMES), _HAND) for wrong, name, rule in checks if wrong]
    if not found and rank is not None and size not in (None, 1, plan.processes):
        rule = "what starts processes by hand must start one for each device"
        got = f"{plan.processes} process{'es' * (plan.processes > 1)}, and WORLD_SIZE={size} in the environment"
        found.append(Problem(where, rule, got, "Set devices= and num_nodes=."))
    elif not found and starts and rank is not None and size not in (None, 1):
        rule = "a process that was started by hand as one of several starts no ranks of its own"
        found.append(Problem(where, rule, given(_NAMES), f'Write strategy="ddp". {_HAND}'))
    return found
