"""Conformance suite of launchers."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from lt_interface.errors import CheckpointError, Problem
from lt_interface.launcher import Launcher, Outcome
from lt_interface.plan import Plan
from lt_interface.ranks import is_rank_zero
from lt_interface.registry import launchers
from lt_interface.testing.suite import Conformance

__all__ = ["LauncherConformance"]

PASSES = ("live", "inherited", "bytes", "script")


class _Job:
    """Request of this suite.

    Args:
        folder: Where each rank leaves a note.
        error: What the ranks raise at their end, or None.
    """

    def __init__(self, folder: Path, error: BaseException | None = None) -> None:
        self.folder, self.error = folder, error

    def to_bytes(self) -> bytes:
        """Return the request as pickle bytes."""
        return pickle.dumps(self)


def _work(request: Any) -> Outcome:
    """Leave a note about this rank, and return its outcome or raise what was asked for."""
    import torch

    job: _Job = pickle.loads(request) if isinstance(request, bytes) else request
    rank = os.environ.get("RANK")
    note = {"pid": os.getpid(), "rank": rank, "kind": type(request).__name__}
    Path(job.folder, f"{os.getpid()}-{rank}.json").write_text(json.dumps(note), encoding="utf-8")
    random.random()
    torch.rand(1)
    if job.error is not None:
        raise job.error
    if not is_rank_zero():
        return Outcome(value="another rank")
    return Outcome(value=[torch.arange(3.0)], weights={"w": torch.ones(2)}, metrics={"callback": {"loss": 0.5}})


def _die(request: Any) -> Outcome:
    """End this rank without a word, as the system does where memory runs out."""
    os._exit(3)


class LauncherConformance(Conformance, suite=True):
    """Tests of a launcher. Of one that runs the user's script again, only what the parent asks is tested.

    Attributes:
        processes: How many ranks the tests start.
        seconds: How long a launch may take.

    Example:
        ::

            class TestFork(LauncherConformance):
                plugin = "fork"
                processes = 2
    """

    registry = launchers
    processes: ClassVar[int] = 1
    seconds: ClassVar[float] = 120.0

    @pytest.fixture
    def launcher(self) -> Launcher:
        """Return a new launcher."""
        made: Launcher = self.make()
        return made

    def _launch(self, launcher: Launcher, job: Any, main: Callable[[Any], Outcome] = _work) -> Outcome:
        """Launch the ranks; one that hangs fails the test."""
        if launcher.passes == "script":
            pytest.skip("this launcher runs the user's script again")
        with _within(self.seconds):
            return launcher.launch(main, job, self._plan(launcher), None)

    def _plan(self, launcher: Launcher) -> Plan:
        return Plan(launcher=launcher.name, devices=tuple(range(self.processes)))

    def test_fills_the_protocol(self, launcher: Launcher) -> None:
        """It has every method and attribute, of the right type, and the name it is registered under."""
        assert isinstance(launcher, Launcher)
        assert isinstance(launcher.name, str)
        assert launcher.name
        assert launcher.passes in PASSES
        if self.plugin:
            assert launcher.name == self.plugin

    def test_problems_are_listed(self, launcher: Launcher) -> None:
        """A plan that it can launch has no problem, and those of any other are a list."""
        assert list(launcher.problems(self._plan(launcher))) == []
        found = launcher.problems(Plan(launcher=launcher.name, devices=tuple(range(64)), num_nodes=64))
        assert all(isinstance(problem, Problem) for problem in found)

    def test_pickles(self, launcher: Launcher) -> None:
        """It travels with the trainer to the ranks."""
        twin = pickle.loads(pickle.dumps(launcher))
        assert (twin.name, twin.passes) == (launcher.name, launcher.passes)

    def test_runs_every_rank_once(self, launcher: Launcher, tmp_path: Path) -> None:
        """Each rank runs the function once, with the request or its bytes, and knows its number."""
        self._launch(launcher, _Job(tmp_path))
        notes = _notes(tmp_path)
        assert len(notes) == self.processes
        assert {note["kind"] for note in notes} == {"bytes" if launcher.passes == "bytes" else "_Job"}
        assert (os.getpid() in {note["pid"] for note in notes}) == (launcher.passes == "live")
        if self.processes > 1:
            assert sorted(note["rank"] for note in notes) == [str(rank) for rank in range(self.processes)]

    def test_outcome_comes_back(self, launcher: Launcher, tmp_path: Path) -> None:
        """Rank 0's outcome is returned when its process is gone, with tensors that may be written to."""
        import torch

        outcome = self._launch(launcher, _Job(tmp_path))
        assert isinstance(outcome, Outcome)
        assert outcome.metrics == {"callback": {"loss": 0.5}}
        weights = cast("dict[str, Any]", outcome.weights)
        weights["w"] += 1
        assert torch.equal(weights["w"], torch.full((2,), 2.0))
        assert torch.equal(outcome.value[0], torch.arange(3.0))

    @pytest.mark.parametrize("error", [CheckpointError("no such file"), KeyboardInterrupt(), SystemExit(143)], ids=repr)
    def test_error_keeps_its_type(self, launcher: Launcher, error: BaseException, tmp_path: Path) -> None:
        """What a rank raises is raised by the launch, of the same type and with the same text."""
        with pytest.raises(type(error)) as caught:
            self._launch(launcher, _Job(tmp_path, error))
        assert type(caught.value) is type(error)
        assert str(error) in str(caught.value)

    def test_dead_rank_is_an_error(self, launcher: Launcher, tmp_path: Path) -> None:
        """A rank that ends without a word is reported, and not waited for without end."""
        if launcher.passes == "live":
            return
        with pytest.raises(Exception) as caught:
            self._launch(launcher, _Job(tmp_path), _die)
        assert not isinstance(caught.value, _LateError), "the launch hung"

    @pytest.mark.parametrize("error", [None, CheckpointError("no such file")], ids=["success", "error"])
    def test_no_process_is_left(self, launcher: Launcher, error: BaseException | None, tmp_path: Path) -> None:
        """When the launch returns or raises, all ranks are gone."""
        try:
            self._launch(launcher, _Job(tmp_path, error))
        except CheckpointError:
            assert error is not None
        assert [note["pid"] for note in _notes(tmp_path) if note["pid"] != os.getpid() and _lives(note["pid"])] == []

    def test_leaves_this_process_alone(self, launcher: Launcher, tmp_path: Path) -> None:
        """Environment, folder, signal handlers, and where ranks are other processes the random state, stay."""
        before = _state(launcher)
        self._launch(launcher, _Job(tmp_path))
        assert _state(launcher) == before

    def test_launches_again(self, launcher: Launcher, tmp_path: Path) -> None:
        """The same launcher serves the next call, also after an error."""
        first, second = tmp_path / "first", tmp_path / "second"
        for folder in (first, second):
            folder.mkdir()
        with pytest.raises(CheckpointError):
            self._launch(launcher, _Job(first, CheckpointError("no such file")))
        self._launch(launcher, _Job(second))
        assert len(_notes(second)) == self.processes


class _LateError(Exception):
    """Launch that took too long."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Interrupt a block that takes longer, where the system has timers."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise _LateError(f"the launch took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _notes(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _state(launcher: Launcher) -> list[Any]:
    """Return what of this process a launch must not change."""
    import torch

    watched = (signal.SIGINT, signal.SIGTERM)
    state: list[Any] = [dict(os.environ), os.getcwd(), [signal.getsignal(number) for number in watched]]
    if launcher.passes != "live":
        state += [random.getstate(), torch.get_rng_state().tolist()]
    return state
