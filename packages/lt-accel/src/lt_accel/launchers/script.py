"""Launcher that runs the user's script again in each further rank; this process is the first one.

All ranks run the whole script, so each call of a trainer in it meets the same call in the others. They are started at
the first call and serve all later ones. Each leads a session of its own and reads a pipe of this process: when that
closes, whatever ended this process, they are gone too. A rank that dies ends this process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lt_accel.clusters.environment import hand_problems
from lt_accel.launchers.place import MARK, node_problems, places, threads_of
from lt_interface import ClusterEnvironment, MisconfigurationException, Outcome, Plan, Problem, RankFailedError

__all__ = ["PIPE", "ScriptLauncher"]

PIPE = "LT_LAUNCHED_PIPE"  # who started a rank, the pipe that it reads, and the one where it reports that it joins
_GRACE = 4.0  # seconds for this process to learn by itself that a rank is gone
_END = 30.0  # seconds that a rank may go on after this process has come to its end
_LOOK = 0.1


class ScriptLauncher:
    """Launcher that runs the script again in each further rank: for ``python train.py`` and ``python -m``.

    Where the environment says that this process is one of several ranks already, it starts none.
    """

    name = "subprocess"

    def __init__(self) -> None:
        by_hand = MARK not in os.environ and os.environ.get("WORLD_SIZE", "1") not in ("", "1") and "RANK" in os.environ
        self.passes = "live" if by_hand else "script"

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Return what hinders the script from running again."""
        where = f"Trainer(strategy={plan.strategy!r}, devices={len(plan.devices)})"
        if self.passes == "live":
            return hand_problems(where, plan)
        found = [*node_problems(where, plan), *hand_problems(where, plan)]
        if plan.processes == 1 or _job.size:
            return found
        if _command() is None:
            rule = "each rank runs the script again, so there must be one"
            fix = 'Save the program in a file, or write strategy="ddp_notebook".'
            found.append(Problem(where, rule, "an interactive session or standard input", fix))
        elif runner := _test_runner():
            rule, fix = "each rank runs the program again, so it must be the training's own", "ddp_fork or ddp_spawn"
            found.append(Problem(where, rule, f"{runner}, which would run all its tests again", f"Use {fix} in tests."))
        return found

    def launch(
        self, main: Callable[[Any], Outcome], request: Any, plan: Plan, cluster: ClusterEnvironment | None
    ) -> Outcome:
        """Run a call as the first rank of this node, once the others are started.

        Raises:
            RankFailedError: If another rank has ended.
            MisconfigurationException: If an earlier call of this process had another number of ranks.
        """
        if self.passes == "live" or (plan.processes == 1 and _job.size == 0):
            return main(request)
        _job.start(plan)
        try:
            with _job.running():
                return main(request)
        except (SystemExit, KeyboardInterrupt):
            _job.stopped = True  # this process ends by that, as the others do
            raise
        except Exception as error:
            killed = _job.killed()
            if killed is not None:
                raise killed from error
            raise


class _Job:
    """Ranks that run this process's script again, started once.

    Attributes:
        size: How many ranks there are on all nodes, 0 before they are started.
        stopped: Whether a signal, or the user's code, ended a call and this process.
    """

    def __init__(self) -> None:
        self.size = 0
        self._ranks: dict[int, subprocess.Popen[bytes]] = {}
        self._calls = 0
        self._joining = -1  # the pipe where ranks report that they join
        self._joined: set[int] = set()
        self._pid = os.getpid()
        self.stopped = False

    def start(self, plan: Plan) -> None:
        """Start the ranks, unless they are there."""
        if self.size == 0:
            self._start(plan)
        elif self.size != plan.processes:
            raise MisconfigurationException(
                Problem(
                    f"Trainer(devices={len(plan.devices)})",
                    "all calls of a script that is run by several ranks need as many ranks",
                    f"{plan.processes}, after {self.size}",
                    "Use the same devices= and num_nodes=, or a script of its own.",
                )
            )
        for rank, process in self._ranks.items():
            if process.poll() is not None:
                raise _gone(rank, process.returncode)

    def _start(self, plan: Plan) -> None:
        command = _command()
        assert command is not None  # `problems` was asked
        own, *others = places(plan)
        own["OMP_NUM_THREADS"] = str(threads_of(plan.local_processes))
        read, write = os.pipe()
        self._joining, joining = os.pipe()
        os.set_blocking(self._joining, False)
        try:
            for place in others:
                environment = {**os.environ, **own, **place, PIPE: f"{os.getpid()},{read},{joining}"}
                self._ranks[int(place["RANK"])] = subprocess.Popen(
                    command + _of_hydra(place["LOCAL_RANK"]),
                    cwd=_folder(),
                    env=environment,
                    pass_fds=(read, joining),
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
        finally:
            os.close(read)
            os.close(joining)
        if hasattr(os, "register_at_fork"):  # a loader's worker must not hold the pipe open
            os.register_at_fork(after_in_child=lambda: _close(write))
        import torch

        torch.set_num_threads(int(own["OMP_NUM_THREADS"]))
        os.environ.update(own)
        self.size = plan.processes
        threading.Thread(target=self._watch, name="lt-ranks", daemon=True).start()
        atexit.register(self._end)

    @contextlib.contextmanager
    def running(self) -> Any:
        """Return a context in which a rank's death ends this process, if that does not come to know of it."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    def killed(self) -> RankFailedError | None:
        """Return the error of a rank that was killed; wait a moment for one that failed to write what its error is."""
        until = time.monotonic() + 1.0
        while time.monotonic() < until and all(process.poll() is None for process in self._ranks.values()):
            time.sleep(_LOOK / 2)
        return next((_gone(rank, p.returncode) for rank, p in self._ranks.items() if (p.poll() or 0) < 0), None)

    def _watch(self) -> None:
        """End this process where a rank died and a call goes on, since it may wait for that rank without end."""
        swept: set[int] = set()
        while True:
            time.sleep(_LOOK)
            dead = {rank: p.returncode for rank, p in self._ranks.items() if p.poll() or self._misses(rank, p)}
            for rank in dead.keys() - swept:
                _kill(self._ranks[rank])  # what it started holds its connections open
            swept |= dead.keys()  # once: the number may be another process's later
            if dead and self._calls:
                until = time.monotonic() + _GRACE
                while self._calls and time.monotonic() < until:
                    time.sleep(_LOOK)
                if self._calls:
                    rank, code = next(iter(dead.items()))
                    error = _gone(rank, code)
                    with contextlib.suppress(Exception):
                        sys.stdout.flush()
                        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    self._kill()
                    os._exit(_exit_code(code))

    def _misses(self, rank: int, process: subprocess.Popen[bytes]) -> bool:
        """Return whether a rank came to its end without joining the others, who wait for it."""
        if process.returncode is None:
            return False
        with contextlib.suppress(OSError):  # nothing was reported since
            self._joined.update(int(line) for line in os.read(self._joining, 1 << 16).split())
        return rank not in self._joined

    def _end(self) -> None:
        """Wait at this process's end for the others to come to theirs; report one that failed by the exit code."""
        if os.getpid() != self._pid:  # a fork of this process
            return
        failed = self.stopped or getattr(sys, "last_value", None) is not None
        until = time.monotonic() + (_GRACE if failed else _END)
        while time.monotonic() < until and any(p.poll() is None for p in self._ranks.values()):
            time.sleep(_LOOK / 2)
        codes = {rank: p.poll() for rank, p in self._ranks.items()}
        self._kill()
        bad = {rank: code for rank, code in codes.items() if code != 0}
        if bad and not failed:
            rank, code = next(iter(bad.items()))
            what = f"it was still running {_END:g} s after rank 0's end" if code is None else _how(code)
            print(f"rank {rank}: it must come to its end with rank 0. Got: {what}.", file=sys.stderr, flush=True)
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(_exit_code(code))

    def _kill(self) -> None:
        for process in self._ranks.values():
            _kill(process)


_job = _Job()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a rank and its children, such as a loader's workers."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def _command() -> list[str] | None:
    """Return what runs this program again, None where it was typed or piped in."""
    main = sys.modules["__main__"]
    is_script = os.path.isfile(getattr(main, "__file__", "")) or getattr(main, "__spec__", None) is not None
    has_code = "-c" in sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    if not (is_script or has_code) or hasattr(sys, "ps1"):
        return None
    return [sys.executable, *sys.orig_argv[1:]]


def _test_runner() -> str | None:
    """Return the name of the test runner that this program is, None if it is none."""
    if "pytest" in sys.modules and "PYTEST_CURRENT_TEST" in os.environ:
        return "pytest"
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return "unittest" if spec is not None and spec.name == "unittest.__main__" else None


def _folder() -> str:
    """Return the folder in which this program was started, which it may have left since, where that can be known."""
    config: Any = _hydra()
    if config is not None:
        folder: str = config.runtime.cwd
        return folder
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None) or ""
    if getattr(main, "__spec__", None) is not None:  # by `-m`, which puts the folder first into the path
        above = file
        for _ in main.__spec__.name.split("."):  # type: ignore[union-attr]
            above = os.path.dirname(above)
        return above if sys.path[:1] == [above] else os.getcwd()
    starts = [file[: -len(arg)] for arg in sys.orig_argv[1:] if file.endswith(os.sep + arg)]
    return starts[0] if starts else os.getcwd()


def _hydra() -> Any:
    """Return Hydra's own settings, None where it does not run this program."""
    known: Any = sys.modules.get("hydra.core.hydra_config")
    return known.HydraConfig.get() if known is not None and known.HydraConfig.initialized() else None


def _of_hydra(local_rank: str) -> list[str]:
    """Return Hydra's arguments that keep a rank from folders of its own, where Hydra runs this program."""
    config = _hydra()
    if config is None:
        return []
    if config.mode.name == "MULTIRUN":  # the ranks run all jobs, too
        folder = f'hydra.sweep.dir="{os.path.join(config.runtime.cwd, config.sweep.dir)}"'
    else:
        folder = f'hydra.run.dir="{config.runtime.output_dir}"'
    return [folder, "hydra.output_subdir=null", f"hydra.job.name={config.job.name}_rank_{local_rank}"]


def _gone(rank: int, code: int) -> RankFailedError:
    fix = f"Look at what rank {rank} wrote."
    return RankFailedError(f"rank {rank}: it must run as long as the others. Got its end by {_how(code)}. {fix}")


def _how(code: int) -> str:
    if code == 0:
        return "the script's end, without a call of a trainer"
    return f"exit code {code}" if code > 0 else f"signal {-code} ({signal.Signals(-code).name})"


def _exit_code(code: int | None) -> int:
    """Return the exit code of a program that a rank ended, from that rank's own; None where it was still running."""
    return 128 - code if code is not None and code < 0 else code or 1


def _close(number: int) -> None:
    with contextlib.suppress(OSError):
        os.close(number)
