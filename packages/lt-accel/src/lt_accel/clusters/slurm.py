"""Slurm: each task that ``srun`` started is a rank."""

from __future__ import annotations

import os
import re

from lt_accel.clusters.variables import number
from lt_interface import World

__all__ = ["SlurmCluster"]

_INTERACTIVE = ("bash", "interactive")  # names of jobs in whose shell a program is started by hand


class SlurmCluster:
    """Tasks of a Slurm job, one process each."""

    name = "slurm"
    creates_processes = True

    @staticmethod
    def detect() -> bool:
        """Return whether this process is a task of a job: not one in an interactive shell, nor one of torchrun's."""
        given = os.environ
        if "SLURM_NTASKS" not in given or "SLURM_PROCID" not in given:
            return False
        return given.get("SLURM_JOB_NAME") not in _INTERACTIVE and "TORCHELASTIC_RUN_ID" not in given

    @property
    def main_address(self) -> str:
        """Return the host of rank 0: the first of the job's."""
        given = os.environ
        if "MASTER_ADDR" in given:
            return given["MASTER_ADDR"]
        hosts = given.get("SLURM_STEP_NODELIST") or given.get("SLURM_JOB_NODELIST") or given.get("SLURM_NODELIST")
        return _first_host(hosts or "127.0.0.1")

    @property
    def main_port(self) -> int:
        """Return a port that the tasks of a job share and that those of other jobs hardly use."""
        return number("MASTER_PORT", self.name, 15000 + number("SLURM_JOB_ID", self.name, 0) % 20000)

    def world(self) -> World:
        """Return the place of this task.

        Raises:
            MisconfigurationException: If a variable is missing or no number.
        """
        rank, size, node = (number(f"SLURM_{name}", self.name) for name in ("PROCID", "NTASKS", "NODEID"))
        return World(
            rank=rank,
            size=size,
            local_rank=number("SLURM_LOCALID", self.name),
            local_size=self._local_size(size, node),
            node_rank=node,
            data_rank=rank,
            data_size=size,
        )

    def _local_size(self, size: int, node: int) -> int:
        """Return how many tasks this node has: as the step says, node by node, else as was asked for."""
        listed = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_TASKS_PER_NODE")
        if listed:
            counts: list[int] = []
            for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed):
                counts += [int(count)] * int(times or 1)
            if node < len(counts):
                return counts[node]
        nodes = number("SLURM_NNODES", self.name, 1)
        return number("SLURM_NTASKS_PER_NODE", self.name, max(size // nodes, 1))


def _first_host(hosts: str) -> str:
    """Return the first host of a list as Slurm writes it, such as ``gpu[07-09,12],cpu1``."""
    match = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,\[]*))?", hosts)
    return hosts if match is None else "".join(part or "" for part in match.groups())
