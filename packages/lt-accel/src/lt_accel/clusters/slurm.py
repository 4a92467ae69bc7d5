"""Slurm: each task that ``srun`` started is a rank."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

from lt_accel.clusters.environment import EnvironmentCluster
from lt_accel.clusters.requeue import Requeue
from lt_accel.clusters.scheduler import SchedulerCluster
from lt_accel.clusters.variables import number, port
from lt_interface import ConfigError, Problem, World, is_rank_zero

__all__ = ["SlurmCluster"]

_INTERACTIVE = ("bash", "interactive")  # names of jobs in whose shell a program is started by hand
_INTERACTIVE_STEP = "4294967290"
_STEP = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_SRUN_COMM_HOST")
_SECONDS = 10.0  # for a command of Slurm's


class SlurmCluster(SchedulerCluster):
    """Tasks of a Slurm job, one process each; or a program in a job's script, which is alone there.

    Args:
        auto_requeue: Whether a run that ends by a signal saves a checkpoint, with which the job goes on when it is
            started again; and whether the job is put into the queue again when ``requeue_signal`` comes.
        requeue_signal: What Slurm was asked to send before the time is up (``--signal=USR1@90``); SIGUSR1 if None.

    Raises:
        ConfigError: If that is no signal that can be watched for.
    """

    name = "slurm"
    priority = -3
    variables: ClassVar[Mapping[str, str]] = {
        "global_rank": "SLURM_PROCID",
        "world_size": "SLURM_NTASKS",
        "local_rank": "SLURM_LOCALID",
        "local_size": "SLURM_NTASKS_PER_NODE",
        "node_rank": "SLURM_NODEID",
        "nodes": "SLURM_NNODES",
        "tasks": "SLURM_TASKS_PER_NODE",
    }

    def __init__(self, auto_requeue: bool = True, requeue_signal: int | None = None) -> None:
        self.auto_requeue = auto_requeue
        number = getattr(signal, "SIGUSR1", None) if requeue_signal is None else requeue_signal
        if requeue_signal is not None and number not in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            where = f"SLURMEnvironment(requeue_signal={requeue_signal!r})"
            raise ConfigError(Problem(where, "it must be a signal that a process can handle", fix="Write SIGUSR1."))
        self.requeue_signal = None if number is None else signal.Signals(number)

    @staticmethod
    def detect() -> bool:
        """Return whether this process belongs to a job: not in an interactive shell, nor by torchrun or mpirun."""
        given = os.environ
        shell = given.get("SLURM_JOB_NAME") in _INTERACTIVE or given.get("SLURM_STEP_ID") == _INTERACTIVE_STEP
        other = "TORCHELASTIC_RUN_ID" in given or "OMPI_COMM_WORLD_RANK" in given or "JSM_NAMESPACE_RANK" in given
        return not shell and "SLURM_PTY_PORT" not in given and not other and (_is_task() or _in_script())

    @property
    def creates_processes(self) -> bool:
        """Return whether ``srun`` has started the ranks; it has not where the job's script runs the program itself."""
        return _is_task()

    @property
    def main_address(self) -> str:
        """Return the host of rank 0: the first of the job's."""
        given = os.environ
        if given.get("MASTER_ADDR"):
            return given["MASTER_ADDR"]
        hosts = given.get("SLURM_STEP_NODELIST") or given.get("SLURM_JOB_NODELIST") or given.get("SLURM_NODELIST")
        return _first_host(hosts or "127.0.0.1")

    @property
    def main_port(self) -> int:
        """Return a port that the tasks of a job share and that those of other jobs hardly use."""
        return port("MASTER_PORT", self.name, 15000 + number("SLURM_JOB_ID", self.name, 0) % 20000)

    def local_size(self) -> int:
        """Return how many tasks this node has: as the step says, node by node, else as was asked for."""
        node = self.node_rank()
        listed = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_TASKS_PER_NODE")
        counts: list[int] = []
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed or ""):
            counts += [int(count)] * int(times or 1)
        if node < len(counts) and sum(counts) == self.world_size():
            return counts[node]
        nodes = number("SLURM_NNODES", self.name, 1)
        return self._read("local_size", max(self.world_size() // max(nodes, 1), 1))

    def node_rank(self) -> int:
        """Return this node's number."""
        return self._read("node_rank")

    def world(self) -> World:
        """Return the place of this task; where Slurm has started no tasks, that which a launcher gave.

        Raises:
            ConfigError: If variables are missing, no numbers, or contradict one another; it lists all.
        """
        return super().world() if self.creates_processes else EnvironmentCluster().world()

    def advice(self, processes: int, nodes: int) -> str:
        """Return how to start so many processes on each of so many nodes, as the end of a sentence."""
        return f"submit with --nodes={nodes} --ntasks-per-node={processes} and start the program by srun"

    # ------------------------------------------------------------ the job

    @property
    def resumes(self) -> bool:
        """Return whether the job was started again, so that a fit goes on where the job was."""
        return self.auto_requeue and os.environ.get("SLURM_RESTART_COUNT", "0").strip() not in ("", "0")

    @property
    def job(self) -> str:
        """Return the job's number, as Slurm's commands take it: of an array, its task."""
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")

    @staticmethod
    def job_id() -> int | None:
        """Return the job's number, None outside of one."""
        text = os.environ.get("SLURM_JOB_ID", "")
        return int(text) if text.isdecimal() else None

    @staticmethod
    def job_name() -> str | None:
        """Return the job's name, None outside of one."""
        return os.environ.get("SLURM_JOB_NAME")

    def watch(self, trainer: Any) -> None:
        """Let the runs of a trainer save when a signal ends them; warn where ``srun`` has been forgotten.

        Args:
            trainer: The trainer.
        """
        tasks = os.environ.get("SLURM_NTASKS", "1")
        alone = not self.creates_processes and tasks.isdecimal() and int(tasks) > 1
        if alone and is_rank_zero() and shutil.which("srun") is not None:
            warnings.warn(
                f"slurm: the job has several tasks, and this program is not one that srun started. Got "
                f"SLURM_NTASKS={tasks}. To train with all of them, write srun in front of the command.",
                stacklevel=2,
            )
        Requeue(self).attach(trainer)

    def seconds_left(self) -> float | None:
        """Return in how many seconds Slurm ends the job; None where there is no limit, or nobody says."""
        end = os.environ.get("SLURM_JOB_END_TIME", "")
        if end.isdecimal():
            return int(end) - time.time()
        if not self.job or shutil.which("squeue") is None:
            return None
        found = self.run("squeue", "--noheader", "--jobs", self.job, "--format", "%L")
        match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", (found or "").strip())
        if match is None:
            return None
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)

    @staticmethod
    def run(*command: str) -> str | None:
        """Return what a command of Slurm's prints; None, and a warning, where it fails.

        Args:
            command: The command.
        """
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
            why = done.stderr.strip() or f"exit code {done.returncode}"
        except (OSError, subprocess.SubprocessError) as error:
            why = f"{type(error).__name__}: {error}"
        else:
            if done.returncode == 0:
                return done.stdout
        warnings.warn(f"slurm: `{' '.join(command)}` failed. Got {why.rstrip('.')}.", stacklevel=2)
        return None


def _is_task() -> bool:
    """Return whether the variables of a task are there, which the first node has for a job's script too."""
    given = os.environ
    return "SLURM_NTASKS" in given and "SLURM_PROCID" in given and not _in_script()


def _in_script() -> bool:
    """Return whether the job's script runs this process, and no ``srun`` in it."""
    given = os.environ
    if any(name in given for name in _STEP) or given.get("SLURM_PROCID", "0") != "0":
        return False
    if "SLURM_PROCID" in given and given.get("ENVIRONMENT") != "BATCH":
        return False
    return "SLURM_JOB_ID" in given


def _first_host(hosts: str) -> str:
    """Return the first host of a list as Slurm writes it, such as ``gpu[07-09,12],cpu1``."""
    match = re.match(r"(?:[^\[,]|\[[^\]]*\])+", hosts)
    return hosts if match is None else re.sub(r"\[(\w+)[^\]]*\]", r"\1", match[0])
