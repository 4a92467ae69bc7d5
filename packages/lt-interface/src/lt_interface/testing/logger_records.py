"""Conformance suite of a logger's abilities: records, doubt, another process, other ranks, media."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lt_interface.abilities import MEDIA, Record, SupportsJoin, SupportsRecords, SupportsReplay
from lt_interface.logger import Logger
from lt_interface.testing.suite import Conformance

__all__ = ["LoggerAbilities"]

Points = dict[str, dict[int, float]]


def _records(first: int, last: int, names: int = 2) -> list[Record]:
    """Return records of one epoch, a metric ``m<n>`` each, that are the same however often they are made."""
    made = []
    for i in range(first, last):
        values = {"epoch": 0.0, **{f"m{n}": i + n / 8 for n in range(names)}}
        made.append(Record(i, "train", "step", i, 1_700_000_000.0 + i / 8, values))
    return made


def _expected(last: int, names: int = 2) -> Points:
    return {f"m{n}": {i: i + n / 8 for i in range(last)} for n in range(names)}


class LoggerAbilities(Conformance, suite=True):
    """Tests of the abilities that a logger has; those that it lacks are skipped.

    Example:
        `LoggerConformance` includes them. A logger with arguments of its own overrides one method::

            class TestRemote(LoggerConformance):
                plugin = "remote"

                def make_logger(self, folder):
                    return RemoteLogger(url="http://localhost:5000", save_dir=str(folder))
    """

    def make_logger(self, folder: Path) -> Logger:
        """Return a new logger; override it where the constructor takes other arguments.

        Args:
            folder: The folder below which the logger writes.
        """
        made: Logger = self.plugin_class()(save_dir=str(folder))
        return made

    def read(self, logger: Logger) -> Points:
        """Return what the tracker holds of a logger's run; every suite must implement it.

        Args:
            logger: The logger, finished or flushed.

        Returns:
            For each metric's name, the value by step.

        Raises:
            NotImplementedError: In this base.
        """
        raise NotImplementedError(f"{type(self).__name__}: read(logger) must be implemented.")

    def _with(self, folder: Path, ability: Any) -> Any:
        made = self.make_logger(folder)
        if not isinstance(made, ability):
            pytest.skip(f"this logger has no {ability.__name__}")
        return made

    def _metrics(self, logger: Logger) -> Points:
        return {name: points for name, points in self.read(logger).items() if name.startswith("m")}

    def test_records_come_back(self, tmp_path: Path) -> None:
        """Two thousand records of five metrics are found with their steps and values, once each."""
        logger = self._with(tmp_path, SupportsRecords)
        for first in range(0, 2000, 500):
            logger.log_records(_records(first, first + 500, 5))
            logger.save()
        logger.finish("success")
        assert self._metrics(logger) == _expected(2000, 5)

    def test_resend_in_doubt_adds_nothing(self, tmp_path: Path) -> None:
        """Records that may be there already are there once."""
        logger = self._with(tmp_path, SupportsRecords)
        logger.log_records(_records(0, 6))
        logger.save()
        logger.log_records(_records(0, 6), unsure=True)
        logger.save()
        logger.log_records(_records(0, 9), unsure=True)
        logger.log_records(_records(9, 12))
        logger.finish("success")
        assert self._metrics(logger) == _expected(12)

    def test_another_process_goes_on(self, tmp_path: Path) -> None:
        """A logger that is made again from its JSON state continues the same run, and repeats nothing."""
        old = self._with(tmp_path, SupportsReplay)
        old.log_records(_records(0, 4))
        old.save()
        state = json.loads(json.dumps(old.replay_state()))
        identity = (old.name, old.version, old.directory)
        old.finish("interrupted")
        new = type(old).from_replay_state(state)
        new.log_records(_records(0, 8), unsure=True)
        new.finish("success")
        assert (new.name, new.version, new.directory) == identity
        assert self._metrics(new) == _expected(8)

    def test_joins(self, tmp_path: Path) -> None:
        """A logger that joins an earlier run is a part of it."""
        old = self._with(tmp_path, SupportsJoin)
        old.log_records(_records(0, 4))
        old.save()
        old.finish("interrupted")
        new: Any = self.make_logger(tmp_path)
        new.join(old.version)
        new.log_records(_records(4, 8), unsure=True)
        new.finish("success")
        assert (new.version, new.directory) == (old.version, old.directory)
        assert self._metrics(new) == _expected(8)

    def test_other_ranks_are_silent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """On any process but the first nothing is written, and every call is accepted."""
        logger: Any = self.make_logger(tmp_path)
        if not callable(getattr(logger, "log_records", None)):
            pytest.skip("this logger leaves that to the trainer")
        monkeypatch.setenv("RANK", "3")
        logger.experiment.anything(1)
        logger.log_metrics({"loss": 1.0}, 0)
        logger.log_records(_records(0, 2))
        logger.log_hyperparams({"a": 1})
        logger.save()
        logger.finish("success")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("call", list(MEDIA))
    def test_shows_media(self, tmp_path: Path, call: str) -> None:
        """What a logger can show it accepts, and its metrics stay as they are."""
        logger: Any = self.make_logger(tmp_path)
        if not callable(getattr(logger, call, None)):
            pytest.skip(f"this logger shows no {MEDIA[call]}")
        logger.log_metrics({"m0": 1.0}, 0)
        if call == "log_figure":
            figures = pytest.importorskip("matplotlib.figure")
            figure = figures.Figure()
            figure.subplots().plot([1.0, 2.0])
            logger.log_figure("shown", figure, step=0)
        elif call == "log_table":
            logger.log_table("shown", ["a", "b"], [[1, "x"]], step=0)
        else:
            values: dict[str, Any] = {
                "log_image": [np.zeros((4, 6, 3), np.uint8)],
                "log_histogram": np.arange(10.0),
                "log_text": "hello",
                "log_audio": [np.zeros(800, np.float32)],
                "log_video": [np.zeros((2, 3, 4, 4), np.uint8)],
            }
            more = {"sample_rate": [8000]} if call == "log_audio" else {}
            getattr(logger, call)("shown", values[call], step=0, **more)
        logger.finish("success")
        assert self._metrics(logger) == {"m0": {0: 1.0}}
