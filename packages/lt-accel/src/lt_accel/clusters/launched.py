"""Ranks that run a script again: each knows its place from the variables of the process that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from functools import cache
from types import TracebackType

from lt_accel.clusters.scheduler import SchedulerCluster
from lt_accel.launchers.script import PIPE
from lt_interface import Plan, Problem, RankFailedError

__all__ = ["LaunchedCluster"]

_pipes: dict[int, int] = {}  # by process: where the rank reports that it joins; a fork of it is none


class LaunchedCluster(SchedulerCluster):
    """Processes that run the script of another one again, as its further ranks."""

    name = "subprocess"
    priority = 10
    launched = True  # by a launcher of the trainer

    @staticmethod
    def detect() -> bool:
        """Return whether this process is such a rank; from then on it ends with the process that started it."""
        if PIPE in os.environ:
            # Taken away: a program that this rank starts is none, and has no such pipes.
            starter, read, write = map(int, os.environ.pop(PIPE).split(","))
            if starter == os.getppid():
                _follow(read)
                _pipes[os.getpid()] = write
        return os.getpid() in _pipes

    def problems(self, plan: Plan, where: str) -> Sequence[Problem]:
        """Return what contradicts between the ranks of this script and a plan."""
        world = self.world()
        if world.size == plan.processes:
            return super().problems(plan, where)
        rule = "all trainers of a script that runs again in each rank need as many devices"
        got = f"{plan.processes}, in rank {world.rank} of {world.size}"
        fix = 'Use as many, a script of its own, or strategy="ddp_fork", after which this process goes on alone.'
        return [Problem(where, rule, got, fix)]

    def joins(self) -> None:
        """Report to the first process, which waits for this rank, that it is about to join."""
        with contextlib.suppress(OSError):  # the other end is gone
            os.write(_pipes[os.getpid()], f"{os.environ['RANK']}\n".encode())


@cache
def _follow(pipe: int) -> None:
    """End this process when the one that started it is gone; leave errors that name another rank to that rank."""
    threading.Thread(target=_wait, args=(pipe,), name="lt-rank", daemon=True).start()
    shown = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, RankFailedError):
            shown(kind, error, trace)

    sys.excepthook = show


def _wait(pipe: int) -> None:
    os.read(pipe, 1)  # its end, since nothing is written
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
