"""torchrun: each process knows its place from the variables of torch's elastic launcher."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar

from lt_accel.clusters.scheduler import SchedulerCluster

__all__ = ["TorchrunCluster"]


class TorchrunCluster(SchedulerCluster):
    """Processes that ``torchrun`` started, on one node or several."""

    name = "torchrun"
    priority = -1
    variables: ClassVar[Mapping[str, str]] = {
        **SchedulerCluster.variables,
        "node_rank": "GROUP_RANK",
        "nodes": "GROUP_WORLD_SIZE",
    }

    @staticmethod
    def detect() -> bool:
        """Return whether torchrun started this process."""
        return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ

    def advice(self, processes: int, nodes: int) -> str:
        """Return how to start so many processes on each of so many nodes, as the end of a sentence."""
        return f"run: torchrun --nnodes {nodes} --nproc-per-node {processes}"
