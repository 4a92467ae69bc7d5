"""Real ranks for tests: forked processes that find one another by their environment, and never outlive the test."""

from __future__ import annotations

import faulthandler
import math
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn, TextIO

__all__ = ["RankError", "RanksTimeoutError", "free_port", "run_ranks"]

# Seconds for a rank to write where it stands, and for the kernel to end it if this process is gone.
_MOMENT, _GRACE = 0.3, 5
_CALLS = 15  # of a thread that are shown


class RankError(RuntimeError):
    """Failure of one rank, with its traceback.

    Example:
        >>> str(RankError("rank 1 ended with exit code 3"))
        'rank 1 ended with exit code 3'
    """


class RanksTimeoutError(AssertionError):
    """Ranks that were not done in time, with where each stood.

    Example:
        >>> str(RanksTimeoutError("rank 0 stands at ..."))
        'rank 0 stands at ...'
    """


def free_port() -> int:
    """Return a TCP port of this machine that nothing listens on.

    Returns:
        The port.

    Raises:
        OSError: If no port is left.

    Example:
        >>> free_port() > 0
        True
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def run_ranks(function: Callable[[int], Any], size: int = 2, timeout: float = 60.0) -> list[Any]:
    """Call a function in forked ranks, and return what each of them returned.

    Each rank has ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``LOCAL_WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``
    in its environment, and torch computes with one thread. The first error of a rank ends the others.

    Args:
        function: What each rank calls with its number; it may be local, since ranks are forked.
        size: How many ranks.
        timeout: Seconds until ranks that are not done are killed.

    Returns:
        The results by rank; they travel as plain pickle bytes.

    Raises:
        BaseException: The first rank's error, of its own type where it can be pickled, from a `RankError` with its
            traceback; that one alone if it cannot, or if the rank was killed.
        RanksTimeoutError: If ranks are not done in time; it says where each rank stood.

    Example:
        >>> run_ranks(lambda rank: rank * 10, size=2)
        [0, 10]
        >>> run_ranks(lambda rank: 1 // rank)
        Traceback (most recent call last):
        ZeroDivisionError: integer division or modulo by zero
    """
    fork = multiprocessing.get_context("fork")
    environment = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryDirectory(prefix="ranks") as folder:
        where = [os.path.join(folder, str(rank)) for rank in range(size)]
        ranks, ends = [], []
        try:
            for rank in range(size):
                end, sender = fork.Pipe(duplex=False)
                own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                process = fork.Process(target=_rank, args=(function, rank, own, sender, where[rank], timeout))
                with warnings.catch_warnings():  # newer Pythons warn of a fork beside threads
                    warnings.simplefilter("ignore", DeprecationWarning)
                    process.start()
                sender.close()
                ranks.append(process)
                ends.append(end)
            return _collect(ranks, ends, where, time.monotonic() + timeout)
        finally:
            for process in ranks:
                process.kill()
                process.join()
            for end in ends:
                end.close()


def _rank(
    function: Callable[[int], Any], rank: int, environment: dict[str, str], sender: Connection, where: str, limit: float
) -> NoReturn:
    """Run one rank; it is killed in the end, since the interpreter's shut-down costs seconds with torch."""
    os.environ.update(environment)
    # A rank that waits in a collective runs no signal handler of Python: this one is C, and the alarm the kernel's.
    with open(where, "w", encoding="utf-8") as dump:
        faulthandler.register(signal.SIGUSR1, file=dump)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(math.ceil(limit) + _GRACE)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)
        try:
            answer: tuple[Any, ...] = (True, function(rank))
            data = pickle.dumps(answer)
        except BaseException as error:
            data = _packed(error, f"rank {rank}:\n{traceback.format_exc()}")
        sys.stdout.flush()
        sys.stderr.flush()
        sender.send_bytes(data)
        while True:  # until all are done: others may still need what this one holds, such as the store of addresses
            signal.pause()


def _packed(error: BaseException, text: str) -> bytes:
    try:
        data = pickle.dumps((False, error, text))
        pickle.loads(data)
    except Exception:
        data = pickle.dumps((False, None, text))
    return data


def _collect(ranks: Sequence[Any], ends: Sequence[Connection], where: Sequence[str], until: float) -> list[Any]:
    """Return the ranks' results; raise the error that comes first."""
    results: list[Any] = [None] * len(ranks)
    waiting: dict[Any, int] = {end: rank for rank, end in enumerate(ends)}
    while waiting:
        ready = wait(list(waiting), timeout=max(until - time.monotonic(), 0.0))
        if not ready:
            raise RanksTimeoutError(_standing(ranks, where, set(waiting.values())))
        for end in ready:
            rank = waiting.pop(end)
            try:
                data = ends[rank].recv_bytes()
            except EOFError:
                ranks[rank].join(_GRACE)
                raise RankError(f"rank {rank} ended with exit code {ranks[rank].exitcode} and no result") from None
            works, *answer = pickle.loads(data)
            if works:
                results[rank] = answer[0]
                continue
            error, text = answer
            raise RankError(text) if error is None else error from RankError(text)
    return results


def _standing(ranks: Sequence[Any], where: Sequence[str], waiting: set[int]) -> str:
    """Return where the ranks stand whose results are missing, and the processes that they started."""
    lines = []
    for rank, file in enumerate(where):
        if rank not in waiting:
            lines.append(f"rank {rank} was done.")
            continue
        pid = ranks[rank].pid
        with open(file, encoding="utf-8") as dump:
            lines.append(f"rank {rank} stood at:\n{_stack(pid, dump)}")
            lines += [f"a child of rank {rank} stood at:\n{_stack(child, dump)}" for child in _children(pid)]
    return "ranks: all must be done in time. " + "\n".join(lines)


def _stack(pid: int, dump: TextIO) -> str:
    """Let a process write where it stands; of its threads, return those that do not rest, and their last calls."""
    with suppress(ProcessLookupError):  # over since
        os.kill(pid, signal.SIGUSR1)
    time.sleep(_MOMENT)
    threads = [block.splitlines() for block in dump.read().strip().split("\n\n")]
    busy = [lines for lines in threads if lines[0].startswith("Current") or "/threading.py" not in "".join(lines[1:2])]
    return "\n".join(line for lines in busy for line in lines[: 1 + _CALLS])


def _children(pid: int) -> list[int]:
    """Return the children of a process, on Linux; forked ones write to its file, too."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as names:
            return [int(name) for name in names.read().split()]
    except OSError:
        return []
