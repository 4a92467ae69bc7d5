"""MPI: each process that ``mpirun`` started is a rank, known by the variables of the implementation."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Mapping
from functools import cache
from zlib import crc32

from lt_accel.clusters.scheduler import SchedulerCluster
from lt_accel.clusters.variables import given, port
from lt_interface import ConfigError, Problem

__all__ = ["MPICluster"]

_KEYS = ("global_rank", "world_size", "local_rank", "local_size")
_FAMILIES = {
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MVAPICH2": (
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    "PMI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}
_JOBS = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "MV2_COMM_WORLD_JOBID", "PBS_JOBID", "SLURM_JOB_ID")


class MPICluster(SchedulerCluster):
    """Processes that ``mpirun`` or ``mpiexec`` started: of Open MPI, MPICH, Intel MPI or MVAPICH2."""

    name = "mpi"
    priority = -2

    @staticmethod
    def detect() -> bool:
        """Return whether MPI's variables are there, and are no more than those of a Slurm task or of torchrun."""
        if "TORCHELASTIC_RUN_ID" in os.environ or "JSM_NAMESPACE_RANK" in os.environ:
            return False
        names = _family()
        if names["global_rank"] != "PMI_RANK":
            return names["global_rank"] in os.environ
        task = [os.environ.get(name) for name in ("SLURM_PROCID", "SLURM_NTASKS")]
        place = [os.environ.get(names[key]) for key in ("global_rank", "world_size")]
        return None not in place and place != task

    @property
    def variables(self) -> Mapping[str, str]:  # type: ignore[override]
        """Return the names that the implementation has given its variables."""
        return _family()

    @property
    def main_address(self) -> str:
        """Return the host of rank 0: as ``MASTER_ADDR`` says, else this one if there is no other, else asked for.

        Raises:
            ConfigError: If there are several nodes and nothing says where rank 0 is.
        """
        asks = not os.environ.get("MASTER_ADDR") and self.detect() and self.local_size() < self.world_size()
        return self._asked() if asks else super().main_address

    @property
    def main_port(self) -> int:
        """Return the port of rank 0: as ``MASTER_PORT`` says, else one that comes from the job's name."""
        job = next((os.environ[name] for name in _JOBS if os.environ.get(name)), None)
        return port("MASTER_PORT", self.name, 29500 if job is None else 15000 + crc32(job.encode()) % 20000)

    def local_rank(self) -> int:
        """Return this process's number on its node; without a variable all are on one node."""
        return self._read("local_rank", self.global_rank())

    def node_rank(self) -> int:
        """Return this node's number, where nodes are filled one after another or each in turn."""
        rank, size, local = self.global_rank(), self.world_size(), self.local_size()
        by_slot = rank % max(local, 1) == self.local_rank()
        return rank // max(local, 1) if by_slot else rank % max(size // max(local, 1), 1)

    def advice(self, processes: int, nodes: int) -> str:
        """Return how to start so many processes on each of so many nodes, as the end of a sentence."""
        return f"run: mpirun -n {processes * nodes}" + (f" with {processes} on each node" if nodes > 1 else "")

    def _asked(self) -> str:
        try:
            return _broadcast_host()
        except ImportError as error:
            where, rule = "MASTER_ADDR", "mpi on several nodes must say where rank 0 is"
            fix = "Run: mpirun -x MASTER_ADDR=HOST, or install mpi4py."
            raise ConfigError(Problem(where, rule, f"nothing, and {given(self.variables.values())}", fix)) from error


def _family() -> dict[str, str]:
    """Return by method the variables of the implementation that started this process; Open MPI's where none did."""
    there = (names for names in _FAMILIES.values() if names[0] in os.environ)
    return dict(zip(_KEYS, next(there, _FAMILIES["Open MPI"]), strict=True))


@cache
def _broadcast_host() -> str:
    """Return the host of rank 0, which all ranks ask for at this place.

    Raises:
        ImportError: If mpi4py is not there.
    """
    world = importlib.import_module("mpi4py.MPI").COMM_WORLD
    host: str = world.bcast(socket.gethostname(), root=0)
    return host
