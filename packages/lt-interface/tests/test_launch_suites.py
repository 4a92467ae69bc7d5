"""The suites of launchers and clusters pass good plugins and catch bad ones."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lt_interface import MisconfigurationException, Outcome, Plan, World
from lt_interface.testing import ClusterConformance, LauncherConformance


class HereLauncher:
    """Launcher of this process."""

    name = "here"
    passes = "live"

    def problems(self, plan: Plan) -> list[Any]:
        return []

    def launch(self, main: Callable[[Any], Outcome], request: Any, plan: Plan, cluster: Any) -> Outcome:
        return main(request)


class PairLauncher(HereLauncher):
    """Launcher of two forked ranks, in which a test may break something."""

    name = "pair"
    passes = "inherited"
    size = 2

    def launch(self, main: Callable[[Any], Outcome], request: Any, plan: Plan, cluster: Any) -> Outcome:
        context = multiprocessing.get_context("fork")
        pipes = [context.Pipe(duplex=False) for _ in range(self.size)]
        ranks = [
            context.Process(target=self.rank, args=(i, main, request, [s for _, s in pipes])) for i in range(self.size)
        ]
        for rank in ranks:
            rank.start()
        for _, sending in pipes:
            sending.close()
        try:
            answers = [self.answer(receiving) for receiving, _ in pipes]
        finally:
            self.end(ranks)
        return self.result(answers)

    def rank(self, number: int, main: Callable[[Any], Outcome], request: Any, pipes: list[Any]) -> None:
        """Run one rank; in its own process."""
        os.environ["RANK"] = str(number)
        for i, pipe in enumerate(pipes):
            if i != number:
                pipe.close()
        try:
            data = self.pack(main(request))
        except BaseException as error:
            data = pickle.dumps(error)
        pipes[number].send(data)
        os._exit(0)

    def pack(self, outcome: Outcome) -> bytes:
        """Return an outcome's bytes."""
        return pickle.dumps(outcome)

    def answer(self, receiving: Any) -> Any:
        """Return what a rank sent."""
        try:
            return pickle.loads(receiving.recv())
        except EOFError:
            return RuntimeError("a rank died")

    def end(self, ranks: list[Any]) -> None:
        """Wait until all ranks are gone."""
        for rank in ranks:
            rank.join(5.0)
            if rank.is_alive():
                rank.kill()
            rank.join()

    def result(self, answers: list[Any]) -> Outcome:
        """Return rank 0's outcome, or raise the first error."""
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        outcome: Outcome = answers[0]
        return outcome


class TestHereLauncher(LauncherConformance):
    def make(self) -> Any:
        return HereLauncher()


class TestPairLauncher(LauncherConformance):
    processes = 2
    seconds = 60.0

    def make(self) -> Any:
        return PairLauncher()


class Asking(PairLauncher):
    """Wrong: it sends bytes without saying so."""

    def launch(self, main: Any, request: Any, plan: Plan, cluster: Any) -> Outcome:
        return super().launch(main, request.to_bytes(), plan, cluster)


class Unnumbered(PairLauncher):
    """Wrong: no rank knows its number."""

    def rank(self, number: int, main: Any, request: Any, pipes: list[Any]) -> None:
        def nameless(request: Any) -> Outcome:
            os.environ.pop("RANK", None)
            outcome: Outcome = main(request)
            return outcome

        super().rank(number, nameless, request, pipes)


class Single(PairLauncher):
    """Wrong: it starts one rank fewer."""

    size = 1


class LastRank(PairLauncher):
    """Wrong: it returns the last rank's outcome."""

    def result(self, answers: list[Any]) -> Outcome:
        return super().result(answers[::-1])


class Wordy(PairLauncher):
    """Wrong: every error becomes one of another type."""

    def answer(self, receiving: Any) -> Any:
        found = super().answer(receiving)
        return RuntimeError(str(found)) if isinstance(found, BaseException) else found


class Silent(PairLauncher):
    """Wrong: errors are dropped."""

    def result(self, answers: list[Any]) -> Outcome:
        return next((a for a in answers if isinstance(a, Outcome)), Outcome())


class Patient(PairLauncher):
    """Wrong: a dead rank is waited for without end."""

    def answer(self, receiving: Any) -> Any:
        try:
            return pickle.loads(receiving.recv())
        except EOFError:
            while True:
                time.sleep(0.05)


class Leaving(PairLauncher):
    """Wrong: ranks outlive the call."""

    left: list[Any] = []

    def rank(self, number: int, main: Any, request: Any, pipes: list[Any]) -> None:
        def slow(request: Any) -> Outcome:
            outcome: Outcome = main(request)
            pipes[number].send(pickle.dumps(outcome))
            time.sleep(30.0)
            return outcome

        super().rank(number, slow, request, pipes)

    def end(self, ranks: list[Any]) -> None:
        self.left.extend(ranks)


class Messy(PairLauncher):
    """Wrong: variables of the ranks stay in this process."""

    def launch(self, main: Any, request: Any, plan: Plan, cluster: Any) -> Outcome:
        os.environ["WORLD_SIZE_OF_PAIR"] = "2"
        return super().launch(main, request, plan, cluster)


class Drawing(PairLauncher):
    """Wrong: it draws from this process's random numbers, for a port."""

    def launch(self, main: Any, request: Any, plan: Plan, cluster: Any) -> Outcome:
        random.randint(20000, 30000)
        return super().launch(main, request, plan, cluster)


class Once(PairLauncher):
    """Wrong: it serves one call."""

    calls = 0

    def launch(self, main: Any, request: Any, plan: Plan, cluster: Any) -> Outcome:
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("it has launched already")
        return super().launch(main, request, plan, cluster)


class Holding(PairLauncher):
    """Wrong: it cannot be pickled."""

    def __init__(self) -> None:
        self.lock = multiprocessing.Lock()


class Vague(PairLauncher):
    """Wrong: its problems are words."""

    def problems(self, plan: Plan) -> list[Any]:
        return ["too many devices"] if plan.processes > 2 else []


class Nameless(PairLauncher):
    """Wrong: there is no such way to pass a request."""

    passes = "pickle"


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (Asking, "runs_every_rank_once"),
        (Unnumbered, "runs_every_rank_once"),
        (Single, "runs_every_rank_once"),
        (LastRank, "outcome_comes_back"),
        (Wordy, "error_keeps_its_type"),
        (Silent, "error_keeps_its_type"),
        (Patient, "dead_rank_is_an_error"),
        (Leaving, "no_process_is_left"),
        (Messy, "leaves_this_process_alone"),
        (Drawing, "leaves_this_process_alone"),
        (Once, "launches_again"),
        (Holding, "pickles"),
        (Vague, "problems_are_listed"),
        (Nameless, "fills_the_protocol"),
    ],
)
def test_bad_launchers_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[PairLauncher], test: str
) -> None:
    """Each rule for launchers fails a plugin that breaks it, and the launcher without the fault passes."""
    monkeypatch.setenv("WORLD_SIZE_OF_PAIR", "")
    suite = TestPairLauncher()
    monkeypatch.setattr(TestPairLauncher, "seconds", 3.0)
    values = {"error_keeps_its_type": [MisconfigurationException("no")], "no_process_is_left": [None]}.get(test, [])
    places = [tmp_path] if test not in ("fills_the_protocol", "problems_are_listed", "pickles") else []
    check = getattr(suite, f"test_{test}")
    try:
        with pytest.raises((AssertionError, pytest.fail.Exception, RuntimeError, TypeError)):
            check(kind(), *values, *places)
    finally:
        for rank in Leaving.left:
            rank.kill()
            rank.join()
        Leaving.left.clear()


class Farm:
    """Scheduler that sets two variables."""

    name = "farm"
    creates_processes = True
    main_address = "node0"
    main_port = 29500

    @staticmethod
    def detect() -> bool:
        return "FARM_RANK" in os.environ

    def world(self) -> World:
        rank, size = int(os.environ["FARM_RANK"]), int(os.environ["FARM_SIZE"])
        return World(rank, size, local_rank=rank, local_size=size, data_rank=rank, data_size=size)


class TestFarm(ClusterConformance):
    ranks = [
        ({"FARM_RANK": str(rank), "FARM_SIZE": "2"}, World(rank, 2, rank, 2, data_rank=rank, data_size=2))
        for rank in range(2)
    ]
    made: type[Farm] = Farm

    def make(self) -> Any:
        return self.made()


class Remembering(Farm):
    """Wrong: its place is that of where it was made."""

    def __init__(self) -> None:
        self.place = super().world() if self.detect() else World()

    def world(self) -> World:
        return self.place


def _marking() -> bool:
    """Return whether the scheduler started this process, and leave a mark."""
    os.environ["FARM_SEEN"] = "1"
    return "FARM_RANK" in os.environ


@pytest.mark.parametrize(
    ("changes", "test"),
    [
        ({"detect": staticmethod(lambda: True)}, "recognises_its_scheduler"),
        ({"detect": staticmethod(lambda: False)}, "recognises_its_scheduler"),
        ({"detect": staticmethod(_marking)}, "recognises_its_scheduler"),
        ({"world": lambda self: World(size=2, data_size=2)}, "every_rank_knows_its_place"),
        ({"world": lambda self: World(size=2, data_size=2)}, "places_fit_together"),
        ({"world": lambda self: World(rank=int(os.environ["FARM_RANK"]) + 1, size=2)}, "places_fit_together"),
        ({"main_address": property(lambda self: f"node{os.environ['FARM_RANK']}")}, "ranks_meet_at_one_address"),
        ({"main_port": "29500"}, "ranks_meet_at_one_address"),
        ({"creates_processes": None}, "fills_the_protocol"),
        ({"name": ""}, "fills_the_protocol"),
    ],
)
def test_bad_clusters_are_caught(changes: dict[str, Any], test: str) -> None:
    """Each rule for clusters fails a plugin that breaks it."""
    suite = TestFarm()
    suite.made = type("Mutant", (Farm,), changes)
    with pytest.raises(AssertionError):
        getattr(suite, f"test_{test}")()


def test_a_cluster_that_remembers_its_place_is_caught() -> None:
    """A cluster that reads its variables when it is made fails where it travels to another rank."""
    suite = TestFarm()
    suite.made = Remembering
    with pytest.raises(AssertionError):
        suite.test_pickles()
