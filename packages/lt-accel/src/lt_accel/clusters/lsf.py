"""LSF: each task that ``jsrun`` started is a rank."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import ClassVar

from lt_accel.clusters.scheduler import SchedulerCluster
from lt_accel.clusters.variables import number, port
from lt_interface import ConfigError, Problem

__all__ = ["LSFCluster"]


class LSFCluster(SchedulerCluster):
    """Tasks of an LSF job, one process each; the job's hosts are in a file or a variable."""

    name = "lsf"
    priority = -4
    variables: ClassVar[Mapping[str, str]] = {
        "global_rank": "JSM_NAMESPACE_RANK",
        "world_size": "JSM_NAMESPACE_SIZE",
        "local_rank": "JSM_NAMESPACE_LOCAL_RANK",
        "local_size": "JSM_NAMESPACE_LOCAL_SIZE",
    }

    @staticmethod
    def detect() -> bool:
        """Return whether this process is a task of a job."""
        needed = ("LSB_JOBID", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE")
        return "TORCHELASTIC_RUN_ID" not in os.environ and all(name in os.environ for name in needed)

    @property
    def main_address(self) -> str:
        """Return the host of rank 0: the first that computes."""
        return self._hosts()[0] if self.detect() and not os.environ.get("MASTER_ADDR") else super().main_address

    @property
    def main_port(self) -> int:
        """Return a port that the tasks of a job share and that those of other jobs hardly use."""
        return port("MASTER_PORT", self.name, 15000 + number("LSB_JOBID", self.name, 0) % 20000)

    def local_size(self) -> int:
        """Return how many tasks this node has."""
        return self._read("local_size", max(self.world_size() // max(len(self._hosts()), 1), 1))

    def node_rank(self) -> int:
        """Return this node's number among those that compute; where its name is not listed, by its tasks."""
        here, hosts = socket.gethostname(), self._hosts()
        names = [host.split(".")[0] for host in hosts]
        if here.split(".")[0] in names:
            return names.index(here.split(".")[0])
        return self.global_rank() // max(self.local_size(), 1)

    def advice(self, processes: int, nodes: int) -> str:
        """Return how to start so many processes on each of so many nodes, as the end of a sentence."""
        return f"run: jsrun --nrs {processes * nodes} --rs_per_host {processes}"

    def _hosts(self) -> list[str]:
        """Return the hosts that compute; where there are several, the first one listed only starts the others.

        Raises:
            ConfigError: If the file of hosts cannot be read, or nothing lists them.
        """
        path, counted = os.environ.get("LSB_DJOB_RANKFILE"), os.environ.get("LSB_MCPU_HOSTS", "").split()
        try:
            with open(path or os.devnull, encoding="utf-8") as file:
                listed = file.read().split()
        except OSError as error:
            rule = "lsf must name a file that lists the job's hosts"
            raise ConfigError(Problem("LSB_DJOB_RANKFILE", rule, f"{path}: {error.strerror}", self._again)) from error
        hosts = list(dict.fromkeys(listed or counted[::2] or os.environ.get("LSB_HOSTS", "").split()))
        if not hosts:
            rule = "lsf must list the job's hosts, there or in LSB_MCPU_HOSTS"
            raise ConfigError(Problem("LSB_DJOB_RANKFILE", rule, "nothing", self._again))
        return hosts[1:] or hosts
