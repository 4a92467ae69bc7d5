"""Where ranks find one another: rank 0's store of keys and values, at an address that all know.

torch waits for a store without an end where something else holds the port and says nothing. So it is called in a thread
of its own, and given up when it takes too long.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from lt_interface import MisconfigurationException, Problem, World

__all__ = ["meet"]

_ANSWER = 30.0  # seconds for a store that is there to answer
_TRY = 5.0
_PORT = "Set MASTER_PORT to a free port, the same for all ranks."
_ADDRESS = "Set MASTER_ADDR to the host of rank 0, for all ranks."


def meet(world: World, host: str, port: int, timeout: timedelta) -> Any:
    """Return the store that rank 0 holds; rank 0 waits for the others.

    Args:
        world: The place of this process.
        host: Rank 0's host.
        port: Its port.
        timeout: How long ranks wait for one another.

    Raises:
        MisconfigurationException: If the port is another program's, or rank 0 cannot be reached in time, or another
            rank does not come.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun's agent holds the store
        return next(rendezvous(f"tcp://{host}:{port}", world.rank, world.size, timeout=timeout))[0]
    until = time.monotonic() + timeout.total_seconds()
    where = f"rank {world.rank}, {host}:{port}"
    if world.rank:
        _reach(where, host, port, timeout, until)
    kind: Any = dist.TCPStore  # type: ignore[attr-defined]
    options = {"wait_for_workers": False, "multi_tenant": True}
    try:
        socket.getaddrinfo(host, port)
        store = _in_time(lambda: kind(host, port, world.size, world.rank == 0, timeout, **options))
    except (OSError, RuntimeError) as error:
        got, fix = str(error).strip().splitlines()[0].rstrip("."), _PORT
        if world.rank:
            rule, got = "rank 0 must hold this port", f"another program, which answers otherwise ({got})"
        elif "EADDRINUSE" in str(error):
            rule, got = "rank 0 must be able to listen on this port", "a port that another process holds"
        else:
            rule, fix = "rank 0 must be able to listen there, and to reach itself by this address", _ADDRESS
        raise MisconfigurationException(Problem(where, rule, got, fix)) from error
    store.set(f"there/{world.rank}", "")
    if world.rank == 0:
        _wait_for_all(store, where, world.size, timeout)
    return store


def _reach(where: str, host: str, port: int, timeout: timedelta, until: float) -> None:
    """Wait until something listens at rank 0's address.

    Raises:
        MisconfigurationException: If nothing does in time.
    """
    note = time.monotonic() + _ANSWER
    while True:
        left = until - time.monotonic()
        try:
            socket.create_connection((host, port), max(min(_TRY, left), 0.1)).close()
            return
        except OSError as error:
            if left <= 0:
                rule = f"rank 0 must be reached there within {timeout.total_seconds():g} s"
                fix = "Look whether rank 0 runs, and whether MASTER_ADDR and MASTER_PORT are its own."
                got = f"{type(error).__name__}: {error}"
                raise MisconfigurationException(Problem(where, rule, got, fix)) from error
            if time.monotonic() > note:
                note = until
                print(f"{where}: still waiting for rank 0. Got {error}.", file=sys.stderr, flush=True)
        time.sleep(min(0.1, max(left, 0.0)))


def _wait_for_all(store: Any, where: str, size: int, timeout: timedelta) -> None:
    """Wait until every rank has come.

    Raises:
        MisconfigurationException: If ranks do not come in time; it names them.
    """
    until, missing = time.monotonic() + timeout.total_seconds(), list(range(size))
    while missing := [rank for rank in missing if not store.check([f"there/{rank}"])]:
        if time.monotonic() > until:
            rule = f"every rank must come here within {timeout.total_seconds():g} s"
            got = f"no sign of ranks {missing[:20]}, of {size}"
            fix = "Look at what they wrote, and whether they can reach this address."
            raise MisconfigurationException(Problem(where, rule, got, fix))
        time.sleep(0.02)  # short, and in Python: the store's own wait heeds no Ctrl-C


def _in_time(call: Callable[[], Any]) -> Any:
    """Return what a call of torch returns or raise what it raises.

    Raises:
        TimeoutError: If it has not come back in time.
    """
    done: list[Any] = []

    def run() -> None:
        try:
            done.append((call(), None))
        except BaseException as error:
            done.append((None, error))

    thread = threading.Thread(target=run, name="lt-store", daemon=True)
    thread.start()
    thread.join(_ANSWER)
    if not done:
        raise TimeoutError(f"no answer within {_ANSWER:g} s")
    value, error = done[0]
    if error is not None:
        raise error
    return value
