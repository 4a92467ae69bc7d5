"""Launchers of ranks that are new processes of this machine, forked or started anew."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from lt_accel.clusters.environment import hand_problems
from lt_accel.launchers.place import MARK, node_problems, places, threads_of
from lt_accel.launchers.rank import END, WATCHED, Failure, run_rank
from lt_interface import ClusterEnvironment, Outcome, Plan, Problem, RankFailedError
from lt_interface.errors import MisconfigurationException, raised_by

__all__ = ["ForkLauncher", "RankError", "SpawnLauncher"]

_GRACE = 4.0  # seconds for the others to end in order after a rank has failed
_LOOK = 0.1
_NO_GUARD = 77  # exit code of a rank that would launch ranks while it imports the user's script


class RankError(RuntimeError):
    """Failure of one rank, with its traceback."""


class ProcessLauncher:
    """Launcher of ranks that this process starts and waits for.

    Nothing of a call stays: whatever happens, all ranks and their children are gone when it returns. A rank that dies
    ends the others; these have some seconds to end in order.
    """

    name: str
    passes: str
    _method: str

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Return what hinders this process from starting ranks."""
        where, found = f"Trainer(launcher={self.name!r})", []
        _end_without_guard()
        if os.environ.get(MARK):
            rule = "a launched rank starts no ranks of its own"
            found.append(Problem(where, rule, f"rank {os.environ[MARK]}", "Call the trainer in the main process."))
        if self._method not in multiprocessing.get_all_start_methods():
            fix = 'Write strategy="ddp_spawn".'
            found.append(Problem(where, "this system must be able to fork processes", sys.platform, fix))
        if multiprocessing.current_process().daemon:
            rule = "a daemonic process of multiprocessing may have no children"
            found.append(Problem(where, rule, multiprocessing.current_process().name, "Start it with daemon=False."))
        return [*found, *node_problems(where, plan), *hand_problems(where, plan, starts=True)]

    def launch(
        self, main: Callable[[Any], Outcome], request: Any, plan: Plan, cluster: ClusterEnvironment | None
    ) -> Outcome:
        """Run a call in every rank of this node; return the first one's outcome when all are gone.

        Raises:
            BaseException: What the first rank that failed raised, of its own type, from a `RankError` with its
                traceback.
            RankFailedError: If a rank ended without a word, or its error cannot be pickled.
        """
        payload = request if self.passes == "inherited" else request.to_bytes()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # closed, or none at all
                stream.flush()
        ranks = _Ranks(multiprocessing.get_context(self._method))
        with _forwarded(ranks) as received:
            try:
                for place in places(plan):
                    ranks.start(place, main, payload, threads_of(plan.local_processes))
                answers = ranks.answers()
            finally:
                ranks.end()
        failed = ranks.first_failure(received)
        if failed is not None:
            raise failed[0] from failed[1]
        outcome: Outcome = answers[0]
        for number in received:  # it came too late for the ranks, but it was meant
            signal.raise_signal(number)
        return outcome


class ForkLauncher(ProcessLauncher):
    """Launcher of forked ranks: quick, for notebooks and tests; nothing has to be pickled on the way there."""

    name, passes, _method = "fork", "inherited", "fork"


class SpawnLauncher(ProcessLauncher):
    """Launcher of ranks that are new interpreters; module, data and callbacks travel there as pickle bytes."""

    name, passes, _method = "spawn", "bytes", "spawn"
    instead_of_pickling = 'Or write strategy="ddp_fork".'

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Return what hinders this process from starting ranks."""
        found = list(super().problems(plan))
        script = getattr(sys.modules["__main__"], "__file__", None)
        if script is not None and not os.path.exists(script):
            rule = "new processes must be able to import the main script"
            fix = f"Save the program in a file. {self.instead_of_pickling}"
            found.append(Problem('Trainer(launcher="spawn")', rule, script, fix))
        return found


class _Ranks:
    """Ranks of one call, the connections to them, and what they answer.

    Args:
        context: What starts processes.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        self._numbers: list[int] = []
        self._answers: dict[int, Any] = {}
        self._lost: dict[int, int] = {}

    def start(self, place: Mapping[str, str], main: Any, payload: Any, threads: int) -> None:
        """Start one rank.

        Args:
            place: The variables that say which one it is.
            main: What it calls.
            payload: With what.
            threads: With how many threads it computes.
        """
        here, there = self._context.Pipe()
        not_own = [*self._connections, here] if self._context.get_start_method() == "fork" else []
        process = self._context.Process(target=run_rank, args=(there, place, main, payload, threads, not_own))
        with _environment(place, threads), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of a fork beside threads
            process.start()
        there.close()
        self._processes.append(process)
        self._connections.append(here)
        self._numbers.append(int(place["RANK"]))

    def forward(self, number: int, count: int) -> None:
        """Report to each rank how often this process has received a signal."""
        for connection in self._connections:
            with suppress(OSError):
                connection.send((number, count))

    def kill(self) -> None:
        """End every rank and its children at once."""
        for process in self._processes:
            _kill(process)

    def answers(self) -> list[Any]:
        """Return what each rank sent, None for those that sent nothing; wait for the others after a failure, not long.

        A rank's end is looked for by asking the system, since its children may hold its pipes open.
        """
        until = float("inf")
        while missing := [i for i in range(len(self._processes)) if i not in self._answers and i not in self._lost]:
            wait([self._connections[i] for i in missing], timeout=_LOOK)
            for i in missing:
                ended = self._processes[i].exitcode is not None  # before the look at what it sent before its end
                data = self._received(i)
                if data is not None:
                    self._answers[i] = pickle.loads(data)
                elif ended:
                    self._lost[i] = self._processes[i].exitcode
                    _kill(self._processes[i])  # what it started holds its connections open
            if self._lost or any(isinstance(answer, Failure) for answer in self._answers.values()):
                until = min(until, time.monotonic() + _GRACE)
            if time.monotonic() > until:
                break
        return [self._answers.get(i) for i in range(len(self._processes))]

    def _received(self, i: int) -> bytes | None:
        try:
            return self._connections[i].recv_bytes() if self._connections[i].poll() else None
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        """Let the ranks end that have answered, and kill what is left, their children too."""
        for connection in self._connections:
            with suppress(OSError):
                connection.send(END)
        until = time.monotonic() + 1.0
        for i in self._answers:
            self._processes[i].join(max(until - time.monotonic(), 0.0))
        self.kill()
        for process in self._processes:
            process.join()
        for connection in self._connections:
            connection.close()

    def first_failure(self, received: Mapping[int, int]) -> tuple[BaseException, BaseException | None] | None:
        """Return the error to raise and what it follows from; None if all went well.

        One that was killed from outside comes before what that led to in the others, and what a rank raised by itself
        before errors that name another rank.
        """
        if self._lost and received:
            return raised_by(next(iter(received))), None
        failures = {i: answer for i, answer in self._answers.items() if isinstance(answer, Failure)}
        for i, code in self._lost.items():
            return _gone(self._numbers[i], code, failures), None
        if not failures:
            return None
        i, failure = min(failures.items(), key=lambda item: item[1].follows)
        where = f"rank {self._numbers[i]}"
        cause = RankError(f"{where}:\n{failure.text}")
        if failure.error:
            return pickle.loads(failure.error), cause
        text = failure.text.strip().splitlines()[-1]
        return RankFailedError(f"{where}: its {failure.kind} cannot be pickled. Got {text}"), cause


def _gone(rank: int, code: int, failures: Mapping[int, Failure]) -> BaseException:
    """Return the error of a rank that ended without a word."""
    if code == _NO_GUARD:
        return MisconfigurationException(
            Problem(
                'Trainer(launcher="spawn")',
                "new processes import the main script, which must not train then",
                "a script without a main guard",
                'Put what runs under `if __name__ == "__main__":`.',
            )
        )
    what = f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.Signals(-code).name})"
    fix = "Where the system ended it, as it does when memory runs out, its log says so (dmesg)."
    return RankFailedError(f"rank {rank}: it must run to its end. Got its end by {what}, without an error. {fix}")


def _kill(process: Any) -> None:
    """End a rank and its children."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
    with suppress(OSError):  # it leads no group yet
        process.kill()


def _end_without_guard() -> None:
    """End this process if it is a new rank that is still importing the user's script."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(_NO_GUARD)


@contextmanager
def _environment(place: Mapping[str, str], threads: int) -> Iterator[None]:
    """Set variables for a process that starts now: a new interpreter reads them before anything else."""
    new = {"OMP_NUM_THREADS": str(threads), **place}
    before = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _forwarded(ranks: _Ranks) -> Iterator[Counter[int]]:
    """Forward signals to the ranks, which decide when to stop; a third one ends them at once.

    Yields:
        How often each signal was received; it stays empty outside the main thread, where none can be watched for.
    """
    received: Counter[int] = Counter()
    previous: dict[int, Any] = {}

    def forward(number: int, frame: FrameType | None) -> None:
        received[number] += 1
        if received[number] > 2:
            ranks.kill()
        ranks.forward(number, received[number])
        own = previous.get(number)
        if callable(own) and own is not signal.default_int_handler:
            own(number, frame)

    if threading.current_thread() is threading.main_thread():
        previous.update({number: signal.signal(number, forward) for number in WATCHED})
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
