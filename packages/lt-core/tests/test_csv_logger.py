"""Write metrics and hyper-parameters to files that a person opens."""

from __future__ import annotations

import argparse
import copy
import csv
import errno
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lt_core.loggers import CSVLogger, DummyLogger, Logger
from lt_interface import Record
from lt_interface.errors import ConfigError
from lt_interface.versions import claim_version


class Mode(str, Enum):
    FAST = "fast"


class Level(IntEnum):
    HIGH = 3


def rows(logger: CSVLogger) -> list[dict[str, str]]:
    logger.flush()
    with open(logger.metrics_file_path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_folders_and_files(tmp_path: Path) -> None:
    """Everything lies in save_dir/name/version_N, and nothing is made before it is needed."""
    logger = CSVLogger(tmp_path, name="net")
    assert list(tmp_path.iterdir()) == []
    assert (logger.name, logger.version) == ("net", 0)
    assert logger.log_dir == str(tmp_path / "net" / "version_0")
    logger.log_metrics({"loss": 1.0}, 3)
    logger.log_hyperparams({"lr": 0.1})
    logger.save()
    assert sorted(p.name for p in (tmp_path / "net" / "version_0").iterdir()) == ["hparams.yaml", "metrics.csv"]
    assert CSVLogger(tmp_path, name="net").version == 1
    assert CSVLogger(tmp_path, name="", version="mine").log_dir == str(tmp_path / "mine")


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    """Runs that claim a version at the same moment never share one."""
    gate, claimed = threading.Barrier(8), []

    def claim() -> None:
        for _ in range(15):
            gate.wait(60)
            claimed.append(claim_version(tmp_path))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(claimed) == list(range(120))


def test_other_ranks_claim_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another rank than 0 the version is the one that rank 0 claimed."""
    first = CSVLogger(tmp_path)
    assert first.version == 0
    monkeypatch.setenv("RANK", "1")
    assert CSVLogger(tmp_path).log_dir == first.log_dir
    assert len(list((tmp_path / "lightning_logs").iterdir())) == 1


def test_new_columns_widen_the_file(tmp_path: Path) -> None:
    """A name that appears later gets a column, earlier rows keep their values, and the order stays."""
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"b": 1.0, "epoch": 0}, 0)
    logger.save()
    logger.log_metrics({"a": 2.0, "epoch": 1}, 1)
    assert rows(logger) == [
        {"epoch": "0", "step": "0", "b": "1.0", "a": ""},
        {"epoch": "1", "step": "1", "b": "", "a": "2.0"},
    ]
    assert list(rows(logger)[0]) == ["epoch", "step", "b", "a"]


def test_values_keep_every_bit(tmp_path: Path) -> None:
    """A value that is read from the file is the one that was logged, nan and inf too."""
    logger, values = CSVLogger(tmp_path), [0.1, 1e-300, float("inf"), float("nan"), torch.tensor(0.1).item()]
    for step, value in enumerate(values):
        logger.log_metrics({"x": value}, step)
    assert repr([float(r["x"]) for r in rows(logger)]) == repr(values)


def test_rows_are_written_after_so_many_steps(tmp_path: Path) -> None:
    """The file is written each time so many rows have come, and steps that nobody gave are counted."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=2)
    logger.log_metrics({"x": 1.0})
    assert not Path(logger.metrics_file_path).exists()
    for _ in range(3):
        logger.log_metrics({"x": 1.0})
    assert len(Path(logger.metrics_file_path).read_text().splitlines()) == 5
    assert [r["step"] for r in rows(logger)] == ["0", "1", "2", "3"]


def test_prefix(tmp_path: Path) -> None:
    """A prefix stands before each name, but not before the step."""
    logger = CSVLogger(tmp_path, prefix="fold1")
    logger.log_metrics({"loss": 1.0}, 0)
    assert rows(logger) == [{"step": "0", "fold1-loss": "1.0"}]


def test_two_runs_in_one_version_do_not_mix(tmp_path: Path) -> None:
    """Where a version is named that exists, its metrics get another name, and a warning says which."""
    for value in (1.0, 2.0):
        logger = CSVLogger(tmp_path, version="mine")
        if value == 2.0:
            with pytest.warns(UserWarning, match="metrics-1.csv"):
                _ = logger.experiment
        logger.log_metrics({"x": value}, 0)
        assert rows(logger) == [{"step": "0", "x": str(value)}]
    assert (Path(logger.log_dir) / "metrics-1.csv").read_text().split() == ["step,x", "0,1.0"]


def test_what_was_abandoned_is_forgotten_in_the_old_folder(tmp_path: Path) -> None:
    """A resumed run's file loses the rows of given records and the user's own of later steps, and no others."""
    old = CSVLogger(tmp_path)
    records = [Record(i, "train", "step", i, 0.0, {"x": 1.0, "epoch": 0, "new": i} if i > 2 else {"x": 1.0, "epoch": 0})
               for i in range(4)]  # fmt: skip
    for step in range(4):
        old.log_records(records[step : step + 1])
        old.log_metrics({"own": float(step)}, step)
    old.finish("interrupted")
    new = CSVLogger(tmp_path)
    new.join(old.version)
    new.forget(records[2:], 2)
    assert new.log_dir == old.log_dir
    new.log_metrics({"x": 5.0, "epoch": 0}, 0)
    assert [tuple(row.values()) for row in rows(new)] == [
        ("0", "0", "1.0", ""), ("", "0", "", "0.0"), ("0", "1", "1.0", ""), ("", "1", "", "1.0"), ("", "2", "", "2.0"),
        ("0", "0", "5.0", ""),
    ]  # fmt: skip
    assert list(rows(new)[0]) == ["epoch", "step", "x", "own"]
    assert [p.name for p in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[Any]]:
    """Return what fills the disk for a while: an append writes a part of what it should."""
    real = open

    def full(path: Any, mode: str = "r", **given: Any) -> Any:
        if mode == "a":
            with real(path, mode, **given) as file:
                file.write("1,")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode, **given)

    @contextmanager
    def filled() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr("builtins.open", full)
            yield

    return filled


def test_full_disk_leaves_whole_rows(tmp_path: Path, full_disk: Any) -> None:
    """A row that could not be written is not half there, and comes once when it is sent again."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    logger.log_metrics({"x": 1.0}, 0)
    with full_disk(), pytest.raises(OSError, match="No space"):
        logger.log_metrics({"x": 2.0}, 1)
    logger.log_metrics({"x": 2.0}, 1)
    assert rows(logger) == [{"step": "0", "x": "1.0"}, {"step": "1", "x": "2.0"}]


@pytest.mark.parametrize("every", [2, 100])
def test_full_disk_and_many_records(every: int, tmp_path: Path, full_disk: Any) -> None:
    """Records that come again after a full disk, taken or not, are there once, and the user's own rows stay."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=every)
    records = [Record(i, "train", "step", i, 0.0, {"x": float(i)}) for i in range(6)]
    logger.log_records(records[:3])
    logger.save()
    logger.log_metrics({"own": 7.0}, 7)

    def send() -> None:
        logger.log_records(records[3:])
        logger.save()

    with full_disk(), pytest.raises(OSError, match="No space"):
        send()
    logger.log_records(records[3:], unsure=True)
    logger.save()
    found = rows(logger)
    assert sorted(row["x"] for row in found if row["x"]) == [f"{i}.0" for i in range(6)]
    assert [row["own"] for row in found if row["own"]] == ["7.0"]


def test_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    """A folder in which nothing can be made is named, with what to change."""
    (tmp_path / "file").write_text("in the way")
    for logger in (CSVLogger(tmp_path / "file"), CSVLogger(tmp_path / "file", version=3)):
        with pytest.raises(ConfigError, match=r"CSVLogger\(save_dir=.*file.*must be writable.*Give another"):
            _ = logger.experiment


def test_hyperparameters_are_plain_yaml(tmp_path: Path) -> None:
    """Whatever the hyper-parameters hold, the file has plain values that YAML's safe reader takes."""
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams(argparse.Namespace(lr=0.1, inner=argparse.Namespace(depth=3)))
    logger.log_hyperparams(
        {"mode": Mode.FAST, "level": Level.HIGH, "np": np.float64(1.5), "np32": np.float32(2.0), "t": torch.tensor(3),
         "act": torch.relu, "cls": CSVLogger, "path": Path("a/b"), "pair": (1, [None, True]), 3: {"x": "ü"}}
    )  # fmt: skip
    logger.save()
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text(encoding="utf-8")) == {
        "lr": 0.1, "inner": {"depth": 3}, "mode": "FAST", "level": "HIGH", "np": 1.5, "np32": 2.0, "t": 3,
        "act": "relu", "cls": "CSVLogger", "path": "a/b", "pair": [1, [None, True]], "3": {"x": "ü"},
    }  # fmt: skip


def test_dummy_logger_accepts_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logger of a fast development run takes any call, keeps nothing and writes nothing."""
    monkeypatch.chdir(tmp_path)
    logger = DummyLogger()
    assert isinstance(logger, Logger)
    logger.log_metrics({"x": 1.0}, 0)
    logger.log_hyperparams({"lr": 1})
    logger.watch_everything(1, key=2)
    logger.experiment.add_image("x", None)
    logger.experiment["a"] = logger.experiment["b"]
    logger.finish("success")
    assert (logger.log_dir, list(tmp_path.iterdir())) == (None, [])
    for ability in ("log_records", "replay_state", "rewind", "join", "share_version", "_mine"):
        assert not hasattr(logger, ability)
    assert isinstance(copy.deepcopy(logger), DummyLogger)


def test_rows_logged_by_the_user_and_by_the_trainer_at_once_are_all_kept(tmp_path: Path) -> None:
    """CSVLogger.log_metrics from two threads: no row is lost, none is written twice."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=2)

    def write(name: str) -> None:
        for step in range(500):
            logger.log_metrics({name: 1.0}, step)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b")]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    logger.save()
    lines = Path(logger.metrics_file_path).read_text().splitlines()
    assert len(lines) == 1001
    assert len(set(lines)) == 1001


def test_a_failed_widening_leaves_rows_and_header_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full when a new column comes: later rows still fit the header."""

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    logger.log_metrics({"a": 1.0}, 0)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(OSError, match="No space"):
            logger.log_metrics({"b": 2.0}, 1)
    logger.log_metrics({"b": 2.0}, 1)
    assert Path(logger.metrics_file_path).read_text().split() == ["step,a,b", "0,1.0,", "1,,2.0"]


@pytest.mark.parametrize("asked", ["save", "forget"])
def test_a_file_that_is_gone_is_written_anew(asked: str, tmp_path: Path) -> None:
    """Who lost its file reports that once, so that all comes again, and the new file has its header."""
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    Path(logger.metrics_file_path).unlink()
    if asked == "save":
        logger.log_metrics({"a": 2.0}, 1)
    with pytest.raises(FileNotFoundError) as caught:
        logger.save() if asked == "save" else logger.forget([], None)
    assert caught.value.lost_all  # type: ignore[attr-defined]
    logger.log_metrics({"b": 1.0}, 0)
    assert rows(logger) == [{"step": "0", "b": "1.0"}]
