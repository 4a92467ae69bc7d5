"""One rank of a launched call: the far end of the pipe to the process that launched it.

Each rank leads a process group of its own, so that it is killed together with its loader's workers. A terminal's Ctrl-C
does not reach it then, and a supervisor may signal every process of a job or the first alone. So the launching process
says how many signals it has received, and the rank makes up for those that it has not.

A rank ends by ``os._exit``: with torch loaded the shut-down of the interpreter takes seconds, in which its connections
stay open and its peers wait for it.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, NoReturn

from lt_interface import Outcome
from lt_interface.errors import raised_by

__all__ = ["END", "WATCHED", "Failure", "run_rank"]

WATCHED = (signal.SIGINT, signal.SIGTERM)
END = "end"  # what a rank is sent when all ranks have answered
_DIRECT = 0.2  # seconds in which a signal that was sent to every process arrives


@dataclass
class Failure:
    """What a rank sends in place of an outcome.

    Attributes:
        error: What it raised, as pickle bytes; empty where it cannot be pickled.
        text: Its traceback.
        kind: Name of the error's class.
        follows: Whether it only follows from the failure of another rank.
    """

    error: bytes
    text: str
    kind: str
    follows: bool


class _Signals:
    """Count of the signals that this rank has received; outside a run's loops one raises what it means.

    They are counted where the system delivers them, since Python's handler waits for the end of a long call.
    """

    def __init__(self) -> None:
        self._received: Counter[int] = Counter()
        self._read, write = os.pipe()
        for end in (self._read, write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        if hasattr(os, "register_at_fork"):  # what a loader's worker receives is not this rank's
            os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        for number in WATCHED:
            signal.signal(number, self.handle)

    def count(self, number: int) -> int:
        """Return how often a signal was received."""
        with suppress(BlockingIOError):
            self._received.update(os.read(self._read, 1 << 12))
        return self._received[number]

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise what a signal means, unless a run watches for signals: it decides by itself when to stop."""
        if signal.getsignal(number) == self.handle:
            raise raised_by(number)


def run_rank(
    connection: Connection,
    environment: Mapping[str, str],
    main: Callable[[Any], Outcome],
    request: Any,
    threads: int,
    not_own: Iterable[Connection] = (),
) -> NoReturn:
    """Run a call in this rank, send what comes of it, and end this process.

    Args:
        connection: To the launching process; if that is gone, so is this rank.
        environment: The variables that say which rank this is.
        main: What runs the call.
        request: What it is given, or its bytes.
        threads: With how many threads torch computes.
        not_own: What a fork took along of other ranks' connections.
    """
    for other in not_own:
        other.close()
    os.environ.update(environment)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    signals, ended = _Signals(), threading.Event()
    threading.Thread(target=_listen, args=(connection, signals, ended), name="lt-rank", daemon=True).start()
    try:
        import torch

        torch.set_num_threads(threads)
        answer: Any = main(request)
        data = pickle.dumps(answer)
    except BaseException as error:
        data = pickle.dumps(failure := _failure(error))
        answer = failure
    for number in WATCHED:
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # it may be closed
            stream.flush()
    with suppress(OSError):  # nobody is there any more
        connection.send_bytes(data)
        ended.wait()  # until all have answered: others may need what this rank holds, such as the store of addresses
    os._exit(1 if isinstance(answer, Failure) else 0)


def _failure(error: BaseException) -> Failure:
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:
        data = b""
    peers = sys.modules.get("lt_accel.peers")  # without it this rank knew of no other one
    return Failure(data, text, type(error).__name__, peers is not None and peers.follows(error))


def _listen(connection: Connection, signals: _Signals, ended: threading.Event) -> None:
    """Read what the launching process sends: signals that it has received, and that all have answered."""
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            _end_with_children()
        if message == END:
            ended.set()
            return
        number, count = message
        time.sleep(_DIRECT)
        if signals.count(number) < count:
            os.kill(os.getpid(), number)


def _end_with_children() -> NoReturn:
    """End this process and those that it has started, such as a loader's workers."""
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
