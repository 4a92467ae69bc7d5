"""Conformance suite of loggers."""

from __future__ import annotations

import argparse
import math
import pickle
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lt_interface.abilities import SupportsRewind
from lt_interface.logger import Logger, SupportsLogging
from lt_interface.registry import loggers
from lt_interface.testing.logger_records import LoggerAbilities

__all__ = ["LoggerConformance"]


class _Opaque:
    """Value that no tracker knows."""


class LoggerConformance(LoggerAbilities, suite=True):
    """Tests of a logger. A subclass names the plugin and implements `read`, which reads a run back.

    Attributes:
        keeps_nonfinite: Whether the tracker can hold nan and inf.
        patience: Seconds that a tracker's own thread may need until a flush is seen.

    Example:
        ::

            class TestLines(LoggerConformance):
                plugin = "lines"

                def read(self, logger):
                    return points_of(logger.directory)
    """

    registry = loggers
    keeps_nonfinite: ClassVar[bool] = True
    patience: ClassVar[float] = 0.0

    def kept_name(self, name: str) -> str:
        """Return the name under which the tracker keeps a metric, where it allows fewer characters.

        Args:
            name: The metric's name.
        """
        return name

    def make_unreachable(self, tmp_path: Path) -> Logger | None:
        """Return a logger whose tracker never answers; None where there is no such thing, as for local files.

        Args:
            tmp_path: A folder to write to.
        """
        return None

    @pytest.fixture
    def logger(self, tmp_path: Path) -> Iterator[Logger]:
        """Return a new logger and finish it after the test."""
        made = self.make_logger(tmp_path)
        yield made
        made.finish("success")

    def test_fills_the_protocol(self, logger: Logger) -> None:
        """It has every method and attribute that the core uses."""
        assert isinstance(logger, SupportsLogging)
        assert isinstance(logger, Logger), "derive from lt_interface.Logger: the core takes its lock with exclusive()"
        assert logger.name is None or isinstance(logger.name, str)
        assert logger.version is None or isinstance(logger.version, (int, str))
        assert logger.directory is None or isinstance(logger.directory, str)

    def test_construction_starts_nothing(self, tmp_path: Path) -> None:
        """A logger that was only constructed leaves no file and no thread behind."""
        threads = set(threading.enumerate())
        made = self.make_logger(tmp_path)
        assert list(tmp_path.iterdir()) == []
        assert set(threading.enumerate()) == threads
        made.finish("success")

    def test_identity_is_stable(self, logger: Logger) -> None:
        """Name, version and directory stay as they were first read."""
        before = (logger.name, logger.version, logger.directory)
        _ = logger.experiment
        logger.log_metrics({"loss": 1.0}, 0)
        assert (logger.name, logger.version, logger.directory) == before
        logger.finish("success")
        assert (logger.name, logger.version, logger.directory) == before

    def test_opening_is_limited(self, logger: Logger) -> None:
        """It declares how long a run's start may wait for it, or that it limits itself."""
        assert logger.open_seconds is None or logger.open_seconds > 0

    def test_a_silent_tracker_holds_nothing_up(self, tmp_path: Path) -> None:
        """While the tracker does not answer, folders have their names: they need neither it nor the lock."""
        made = self.make_unreachable(tmp_path)
        if made is None:
            pytest.skip("this logger has no tracker that can be away")
        seen: list[Any] = []

        def identify() -> None:
            seen.append((made.name, made.version, made.directory))

        def start(call: Any, seconds: float) -> None:
            thread = threading.Thread(target=call, daemon=True)
            thread.start()
            thread.join(seconds)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start(identify, 60.0)
            start(lambda: made.experiment, 0.5)
            start(identify, 10.0)
        assert len(seen) == 2, "name, version and directory must be known while experiment is being opened"
        assert seen[0] == seen[1]

    def test_runs_do_not_mix(self, tmp_path: Path) -> None:
        """Two loggers of the same arguments are two runs."""
        first, second = self.make_logger(tmp_path), self.make_logger(tmp_path)
        first.log_metrics({"loss": 1.0}, 0)
        second.log_metrics({"loss": 2.0}, 0)
        first.finish("success")
        second.finish("success")
        assert (first.version, first.directory) != (second.version, second.directory)
        assert self.read(first)["loss"] == {0: 1.0}
        assert self.read(second)["loss"] == {0: 2.0}

    def test_metrics_come_back(self, logger: Logger) -> None:
        """Every value is found under its name and step, also where steps have different names."""
        for step in range(5):
            logger.log_metrics({"loss": 1.0 / (step + 1), "epoch": 0.0}, step)
        logger.log_metrics({"val_loss": 0.25}, 4)
        logger.log_metrics({"loss": 0.125}, 7)
        logger.finish("success")
        found = self.read(logger)
        assert found["loss"] == {**{s: pytest.approx(1.0 / (s + 1)) for s in range(5)}, 7: 0.125}
        assert found["epoch"] == dict.fromkeys(range(5), 0.0)
        assert found["val_loss"] == {4: 0.25}

    @pytest.mark.parametrize("name", ["val/loss", "acc/dataloader_idx_1", "a b", "µ", "x-1.5", "A_b"])
    def test_names_survive(self, logger: Logger, name: str) -> None:
        """Groups, blanks and letters of any script stay in a metric's name."""
        logger.log_metrics({name: 2.0}, 3)
        logger.finish("success")
        assert self.read(logger)[self.kept_name(name)] == {3: 2.0}

    def test_nonfinite_values(self, logger: Logger) -> None:
        """Values of nan and inf are accepted, with a warning at most, and kept where the tracker can."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logger.log_metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0}, 0)
            logger.finish("success")
        found = self.read(logger)
        assert found["d"] == {0: 1.0}
        if self.keeps_nonfinite:
            assert math.isnan(found["a"][0])
            assert found["b"] == {0: math.inf}
            assert found["c"] == {0: -math.inf}

    def test_step_may_be_missing(self, logger: Logger) -> None:
        """Metrics without a step, and no metrics at all, are accepted."""
        logger.log_metrics({"loss": 1.0})
        logger.log_metrics({}, 1)
        logger.finish("success")
        assert list(self.read(logger)["loss"].values()) == [1.0]

    def test_hyperparameters_of_any_kind(self, logger: Logger) -> None:
        """No hyper-parameter stops a run, whatever its type or depth."""
        odd = {"net": {"width": 3, "act": len}, "path": Path("a"), "none": None, "cls": _Opaque, "object": _Opaque()}
        plain = {"lr": 0.1, "name": "x", "flag": True, "sizes": [1, 2], "pair": (1, 2), 3: "key"}
        logger.log_hyperparams({})
        logger.log_hyperparams({**plain, **odd})
        logger.log_hyperparams(argparse.Namespace(lr=0.2, inner=argparse.Namespace(x=1)))
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finish("success")
        assert self.read(logger)["loss"] == {0: 1.0}

    def test_flush_makes_visible(self, logger: Logger) -> None:
        """After flush, a reader sees what was logged while the run continues."""
        logger.log_metrics({"loss": 1.0}, 0)
        self.assert_visible(logger, {0: 1.0})
        logger.log_metrics({"loss": 2.0}, 1)
        self.assert_visible(logger, {0: 1.0, 1: 2.0})

    def assert_visible(self, logger: Logger, expected: dict[int, float]) -> None:
        """Flush and read, again until the patience is over.

        Args:
            logger: The logger under test.
            expected: What the metric ``loss`` must hold: value by step.
        """
        end = time.monotonic() + self.patience
        logger.flush()
        while self.read(logger).get("loss") != expected and time.monotonic() < end:
            time.sleep(0.02)
            logger.flush()
        assert self.read(logger).get("loss") == expected

    @pytest.mark.parametrize("status", ["success", "failed", "interrupted"])
    def test_finishes_in_any_way(self, tmp_path: Path, status: str) -> None:
        """Each status closes the run, a second time too, and used or not."""
        used, unused = self.make_logger(tmp_path), self.make_logger(tmp_path)
        used.log_metrics({"loss": 1.0}, 0)
        for made in (used, used, unused):
            made.finish(status)
        assert self.read(used)["loss"] == {0: 1.0}

    def test_goes_on_after_finish(self, logger: Logger) -> None:
        """A finished logger takes more, in the same run: ``test`` follows ``fit``."""
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finish("success")
        directory = logger.directory
        logger.log_metrics({"test_loss": 3.0}, 1)
        logger.finish("success")
        assert logger.directory == directory
        found = self.read(logger)
        assert found["loss"] == {0: 1.0}
        assert found["test_loss"] == {1: 3.0}

    def test_threads_do_not_lose_values(self, logger: Logger) -> None:
        """The core's thread and the user's may log at once, each under the lock, and nothing is lost."""
        _ = logger.experiment

        def feed(name: str) -> None:
            for step in range(50):
                with logger.exclusive():
                    logger.log_metrics({name: float(step)}, step)

        threads = [threading.Thread(target=feed, args=(name,)) for name in ("one", "two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        logger.finish("success")
        found = self.read(logger)
        assert found["one"] == found["two"] == {step: float(step) for step in range(50)}

    def test_lock_is_one_and_reentrant(self, logger: Logger) -> None:
        """A thread that holds the lock can take it again; another one waits."""
        entered = threading.Event()

        def enter() -> None:
            with logger.exclusive():
                entered.set()

        with logger.exclusive(), logger.exclusive():
            logger.flush()
            other = threading.Thread(target=enter)
            other.start()
            assert not entered.wait(0.05)
        other.join(60)
        assert entered.is_set()

    @pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
    def test_pickles(self, logger: Logger, used: bool) -> None:
        """A copy in a spawned process is of the same run and takes no open file along."""
        if used:
            logger.log_metrics({"loss": 1.0}, 0)
            logger.finish("success")
        identity = (logger.name, logger.version, logger.directory)
        again = pickle.loads(pickle.dumps(logger))
        assert (again.name, again.version, again.directory) == identity

    def test_rewinds(self, tmp_path: Path) -> None:
        """A resumed run continues the old one, and what came after the checkpoint is gone.

        The values are as the trainer sends them, with the epoch.
        """
        old = self.make_logger(tmp_path)
        if not isinstance(old, SupportsRewind):
            pytest.skip("this logger does not rewind")
        for step in range(10):
            old.log_metrics({"epoch": 0.0, "loss": float(step)}, step)
        old.finish("interrupted")
        new: Any = self.make_logger(tmp_path)
        everything = new.rewind(5, old.version)
        assert isinstance(everything, bool)
        assert (new.version, new.directory) == (old.version, old.directory)
        for step in range(0 if everything else 6, 12):
            new.log_metrics({"epoch": 0.0, "loss": float(step) + (100.0 if step > 5 else 0.0)}, step)
        new.finish("success")
        expected = {step: float(step) + (100.0 if step > 5 else 0.0) for step in range(12)}
        assert self.read(new)["loss"] == expected
