"""Jobs that something outside starts again after a failure: which variables say so.

A supervisor of any kind is known by two variables: one names the job, alike in each of its starts, and one counts how
often it was started again. `LT_JOB_ID` and `LT_RESTART_COUNT` are there for supervisors that have none of their own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Job", "current_jobs"]

# Who starts again, the job's name, the count of restarts.
_SUPERVISORS = (
    ("lt", "LT_JOB_ID", "LT_RESTART_COUNT"),
    ("torchelastic", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
    ("slurm", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
)


@dataclass(frozen=True)
class Job:
    """Job that this process belongs to.

    Attributes:
        id: The same in each start of the job, and in no other job.
        restarts: How often it was started again.

    Example:
        >>> Job("slurm:81", restarts=2).restarts
        2
    """

    id: str
    restarts: int = 0


def current_jobs(environment: Mapping[str, str] | None = None) -> list[Job]:
    """Return the jobs that this process belongs to: a supervisor may run inside another one's job.

    Args:
        environment: The variables; those of this process if None.

    Example:
        >>> current_jobs({"SLURM_JOB_ID": "81", "SLURM_RESTART_COUNT": "1"})
        [Job(id='slurm:81', restarts=1)]
        >>> current_jobs({})
        []
    """
    found = []
    for who, name, count in _SUPERVISORS:
        id = (os.environ if environment is None else environment).get(name)
        restarts = (os.environ if environment is None else environment).get(count, "0").strip()
        if not id:
            continue
        if who == "torchelastic" and id == "none":  # nobody named it: its agent, which outlives the restarts, does
            id = f"none-{socket.gethostname()}-{os.getppid()}"
        found.append(Job(f"{who}:{id}", int(restarts) if restarts.isdecimal() else 0))
    return found
