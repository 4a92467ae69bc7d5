"""Places of ranks: the environment variables that say which rank a process is, and where rank 0 is found."""

from __future__ import annotations

import os
import socket
import sys
import warnings

from lt_interface import Plan, Problem, is_rank_zero

__all__ = ["MARK", "cores_here", "node_problems", "places", "threads_of"]

MARK = "LT_LAUNCHED_RANK"  # set in each rank that a launcher of this package started


_held: int | None = None  # a socket's number
_MANY = 32  # ranks of one core: with more, a number was mistyped


def node_problems(where: str, plan: Plan) -> list[Problem]:
    """Return what the environment does not say that processes on several nodes must know, and how many are too many.

    Args:
        where: Start of the message.
        plan: What was decided.
    """
    cores, ranks = cores_here(), plan.local_processes if plan.device_type == "cpu" else 1
    if ranks > max(_MANY * cores, 2 * _MANY):
        rule, fix = f"this machine, of {cores} cores, cannot run so many processes", f"Write devices={cores}."
        return [Problem(where, rule, f"devices={ranks}", fix)]
    if ranks > cores and is_rank_zero() and not os.environ.get(MARK):
        warnings.warn(f"{where}: {ranks} processes share {cores} cores. devices={cores} is faster.", stacklevel=2)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if not os.environ.get(name)]
    if plan.num_nodes == 1 or not missing:
        return []
    rule = f"with num_nodes={plan.num_nodes} each node's program must know rank 0's address and its node's number"
    fix = "Set them where you start the program on each node, or start it by torchrun."
    return [Problem(where, rule, f"no {', '.join(missing)}", fix)]


def places(plan: Plan) -> list[dict[str, str]]:
    """Return for each rank of this node the variables that say which one it is, and where rank 0 is found.

    Args:
        plan: What was decided.
    """
    several = plan.num_nodes > 1
    node = int(os.environ["NODE_RANK"]) if several else 0
    address = {
        "MASTER_ADDR": os.environ["MASTER_ADDR"] if several else "127.0.0.1",
        "MASTER_PORT": os.environ["MASTER_PORT"] if several else str(_free_port()),
    }
    size = plan.local_processes
    return [
        {
            **address,
            MARK: str(node * size + i),
            "RANK": str(node * size + i),
            "WORLD_SIZE": str(plan.processes),
            "LOCAL_RANK": str(i),
            "LOCAL_WORLD_SIZE": str(size),
            "NODE_RANK": str(node),
        }
        for i in range(size)
    ]


def threads_of(ranks: int) -> int:
    """Return with how many threads each rank of a node computes: as the user says, else its share of the cores.

    Args:
        ranks: How many ranks the node has.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else max(cores_here() // ranks, 1)


def cores_here() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_port() -> int:
    """Return a port that nothing else gets before rank 0 listens on it.

    A socket of this process stays bound to it until the next call. Rank 0 can listen beside it, since both allow the
    address to be used again and this one does not listen; Linux gives such a port to nobody who asks for any.
    """
    global _held
    if _held is not None:
        os.close(_held)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        _held = probe.detach() if sys.platform == "linux" else None  # elsewhere it could stand in rank 0's way
    return port
