"""The journal's command sends what a run could not; one call on the module reaches every logger."""

from __future__ import annotations

import copy
import csv
import os
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import SILENT, Numbers

from lt_core import Trainer
from lt_core.callbacks import ModelCheckpoint
from lt_core.journal.__main__ import main as command
from lt_core.loggers import CSVLogger, Logger
from lt_core.tracking.lock import JournalLock
from lt_core.tracking.replay import replay
from lt_interface import ConfigError, Record

QUIET: dict[str, Any] = {**SILENT, "enable_checkpointing": False, "max_epochs": 1, "log_every_n_steps": 1}
DATA = [torch.full((1, 1), float(v)) for v in range(8)]


class Down(Logger):
    """Logger whose tracker is away while ``down`` is set; it takes records in batches."""

    def __init__(self, down: bool = True) -> None:
        self.down = down
        self.got: list[Record] = []
        self.unsure: list[bool] = []
        self.threads: set[str] = set()

    def log_records(self, records: Any, unsure: bool = False) -> None:
        self.threads.add(threading.current_thread().name)
        if self.down:
            raise ConnectionError("no route to host")
        self.got += records
        self.unsure.append(unsure)


class Pictures(Logger):
    """Logger that shows pictures, and nothing else."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, int | None]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        return None

    def log_image(self, key: str, images: Any, step: int | None = None, **kwargs: Any) -> None:
        self.shown.append((key, step))


def test_replay_sends_what_is_missing_once(tmp_path: Path) -> None:
    """What a run could not send is sent afterwards, in order, with its own wall times, and only once."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        Trainer(**QUIET, logger=Down(), default_root_dir=tmp_path).fit(Numbers(), DATA)
    (journal,) = tmp_path.rglob("metrics.journal")
    assert [w for w in warned if "8 records" in str(w.message) and str(journal) in str(w.message)]
    back = Down(down=False)
    (result,) = replay(journal.parent, loggers=[back])
    assert (result.sent, result.left) == (8, 0)
    assert [r.step for r in back.got] == list(range(8))
    assert all(back.unsure)  # a process that ended without an answer may have sent some
    again = Down(down=False)
    assert replay(journal.parent, loggers=[again])[0].sent == 0
    assert again.got == []


def test_command_rebuilds_a_csv_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After a kill the command completes metrics.csv, and says so."""
    program = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2]); from test_replay import *\n"
        "die = lambda net: net.global_step == 5 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "Trainer(**QUIET, logger=CSVLogger(sys.argv[1]), default_root_dir=sys.argv[1]).fit(Numbers(die), DATA)"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path), str(Path(__file__).parent)]
    subprocess.run(arguments, check=False, timeout=120, capture_output=True)
    (journal,) = tmp_path.rglob("metrics.journal")
    assert command(["replay", str(journal.parent)]) == 0
    assert "CSVLogger: " in capsys.readouterr().out
    with open(journal.parent / "metrics.csv", encoding="utf-8") as file:
        assert [float(row["x"]) for row in csv.DictReader(file)] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert command(["status", str(journal.parent)]) == 0


def test_wrong_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without a journal is one clear line that names those below it."""
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "metrics.journal").touch()
    assert command(["replay", str(tmp_path / "runs")]) == 2
    assert f"Below it: {tmp_path / 'runs' / 'a'}" in capsys.readouterr().err
    assert command(["replay", str(tmp_path / "runs" / "a")]) == 2
    assert "no logger is described" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="locks of this kind")
def test_running_run_is_left_alone(tmp_path: Path) -> None:
    """A journal whose run goes on in another process is refused, with that process's number."""
    (tmp_path / "metrics.journal").touch()
    code = (
        "import sys; from lt_core.tracking.lock import JournalLock\n"
        "JournalLock(sys.argv[1]).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    path = str(tmp_path / "metrics.journal")
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ConfigError, match=rf"must not be going on.*process {other.pid}"):
            replay(tmp_path)
        other.kill()
    with JournalLock(path):
        pass


def test_sync_delivery_is_inline(tmp_path: Path) -> None:
    """With logger_delivery="sync", or delivery="sync" on the logger, no thread of ours calls it."""
    first, second = Down(down=False), Down(down=False)
    second.delivery = "sync"
    seen: list[int] = []
    trainer = Trainer(**QUIET, logger=first, default_root_dir=tmp_path, logger_delivery="sync")
    trainer.fit(Numbers(lambda net: seen.append(len(first.got))), DATA)
    Trainer(**QUIET, logger=second, default_root_dir=tmp_path).fit(Numbers(), DATA)
    assert seen == list(range(8))  # each record was there before the next step
    assert first.threads == second.threads == {threading.main_thread().name}
    with pytest.raises(ConfigError, match="logger_delivery='later'"):
        Trainer(**QUIET, logger_delivery="later")


def test_sync_delivery_sends_hyper_parameters_before_the_first_hook(tmp_path: Path) -> None:
    """Without a thread, too, a logger has the hyper-parameters when training starts."""

    class Parameters(Down):
        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            got.append(dict(params))

    class Named(Numbers):
        def __init__(self, width: int = 1) -> None:
            super().__init__()
            self.save_hyperparameters()

        def on_train_start(self) -> None:
            assert got == [{"width": 1}]

    got: list[Any] = []
    flags: dict[str, Any] = {**QUIET, "logger_delivery": "sync", "default_root_dir": tmp_path}
    Trainer(**flags, logger=Parameters(down=False)).fit(Named(), DATA)
    assert got == [{"width": 1}]


def test_one_call_reaches_every_logger(tmp_path: Path) -> None:
    """log_image on the module reaches each logger that shows pictures, and one that cannot is reported once."""
    first, second = CSVLogger(tmp_path), Pictures()
    kinds: list[bool] = []

    def show(net: Numbers) -> None:
        net.logger.log_image("sample", [1])
        kinds.append(isinstance(net.logger, CSVLogger) and net.logger == first and net.logger.log_dir == first.log_dir)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        Trainer(**QUIET, logger=[first, second], default_root_dir=tmp_path).fit(Numbers(show), DATA)
    assert second.shown == [("sample", step) for step in range(8)]
    assert ["CSVLogger cannot show images" in str(w.message) for w in warned if "cannot show" in str(w.message)] == [
        True
    ]
    assert all(kinds)


def test_flush_orders_direct_calls(tmp_path: Path) -> None:
    """After logger.flush() all that was logged before is there."""
    logger, seen = Down(down=False), []  # type: ignore[var-annotated]

    def look(net: Numbers) -> None:
        logger.flush()
        seen.append(len(logger.got))

    Trainer(**QUIET, logger=logger, default_root_dir=tmp_path).fit(Numbers(look), DATA)
    assert seen == list(range(8))


def test_twins_are_refused(tmp_path: Path) -> None:
    """Two loggers of one kind, folder and version are one clear error before anything is written."""
    twins = [CSVLogger(tmp_path, version=1), CSVLogger(tmp_path, version=1)]
    with pytest.raises(ConfigError, match="two CSVLogger must not write to the same folder"):
        Trainer(**QUIET, logger=twins, default_root_dir=tmp_path).fit(Numbers(), DATA)
    assert not list(tmp_path.rglob("*.csv"))


def test_a_logger_in_trouble_with_parameters_stops_nothing(tmp_path: Path) -> None:
    """One that raises in log_hyperparams gets its metrics, and a warning is all there is."""

    class Picky(Down):
        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            raise ValueError("no parameters, please")

    class Named(Numbers):
        def __init__(self, width: int = 1) -> None:
            super().__init__()
            self.save_hyperparameters()

    logger = Picky(down=False)
    with pytest.warns(UserWarning, match="hyper-parameters: left out, ValueError"):
        Trainer(**QUIET, logger=logger, default_root_dir=tmp_path).fit(Named(), DATA)
    assert len(logger.got) == 8


def test_one_that_fails_to_show_keeps_it_from_no_other(tmp_path: Path) -> None:
    """A step may be given by position, and a logger that raises does so after the others have it."""

    class Broken(Pictures):
        def log_image(self, key: str, images: Any, step: int | None = None, **kwargs: Any) -> None:
            raise ValueError(f"no {key}")

    good = Pictures()

    def show(net: Numbers) -> None:
        with pytest.raises(ValueError, match="no sample"):
            net.logger.log_image("sample", [1], 77)

    class Away(Pictures):
        def log_image(self, key: str, images: Any, step: int | None = None, **kwargs: Any) -> None:
            raise ConnectionError("server down")

    with pytest.warns(UserWarning, match="Away failed with ConnectionError: server down"):
        Trainer(**QUIET, logger=[Away(), Broken(), good], default_root_dir=tmp_path).fit(Numbers(show), DATA[:1])
    assert good.shown == [("sample", 77)]


def test_new_run_keeps_what_the_old_one_could_not_send(tmp_path: Path) -> None:
    """A run in a used folder leaves there what other loggers still lack, names the command, and that sends it."""
    down = Down()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(**QUIET, logger=[CSVLogger(tmp_path, version=0), down], default_root_dir=tmp_path).fit(Numbers(), DATA)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        Trainer(**QUIET, logger=CSVLogger(tmp_path, version=0), default_root_dir=tmp_path).fit(Numbers(), DATA)
    folder = tmp_path / "lightning_logs" / "version_0"
    assert any("They are kept" in str(w.message) and f"replay {folder}" in str(w.message) for w in warned)
    back = Down(down=False)
    results = replay(folder, loggers=[CSVLogger(tmp_path, version=0), back])
    assert [one.left for one in results] == [0, 0]
    assert [record.step for record in back.got] == list(range(8))


def test_a_run_before_one_that_was_sent_is_replayed_to_its_last_record(tmp_path: Path) -> None:
    """A logger that lacks all of one run, but nothing of the next in the same folder, is sent all of the first."""
    for down in (True, False):
        loggers = [CSVLogger(tmp_path, version=0), Down(down)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Trainer(**QUIET, logger=loggers, default_root_dir=tmp_path).fit(Numbers(), DATA)
    back = Down(down=False)
    _, result = replay(tmp_path / "lightning_logs" / "version_0", loggers=[CSVLogger(tmp_path, version=0), back])
    assert (result.sent, result.left) == (8, 0)
    assert [record.step for record in back.got] == list(range(8))


def test_crash_of_the_machine(tmp_path: Path) -> None:
    """A journal that lost its end keeps what it has, as do the loggers; the resumed run says what is missing."""
    flags: dict[str, Any] = {**QUIET, "enable_checkpointing": True, "default_root_dir": tmp_path}
    Trainer(**flags, logger=CSVLogger(tmp_path, version=0)).fit(Numbers(), DATA)
    (journal,) = tmp_path.rglob("metrics.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]))
    again = Trainer(**{**flags, "max_epochs": 2}, logger=CSVLogger(tmp_path, version=0))
    with pytest.warns(UserWarning, match="1 records of metrics before the checkpoint are not in"):
        again.fit(Numbers(), DATA, ckpt_path="last")
    with open(journal.parent / "metrics.csv", encoding="utf-8") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [*range(16)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="locks of this kind")
def test_two_processes_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in whose folder another process writes is one clear error, and that one's journal stays as it was."""
    monkeypatch.setattr("lt_core.tracking.opening.LOCK_SECONDS", 0.2)
    folder = tmp_path / "lightning_logs" / "version_0"
    folder.mkdir(parents=True)
    code = (
        "import sys; from lt_core.tracking.lock import JournalLock\n"
        "JournalLock(sys.argv[1]).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    path = folder / "metrics.journal"
    path.write_bytes(b"theirs")
    arguments = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ConfigError, match=rf"no other process must be writing to it. Got process {other.pid}"):
            Trainer(**QUIET, logger=CSVLogger(tmp_path, version=0), default_root_dir=tmp_path).fit(Numbers(), DATA)
        other.kill()
    assert path.read_bytes() == b"theirs"


def test_copies_are_of_the_first_logger(tmp_path: Path) -> None:
    """A copy of the module's logger is one of the logger, and no copy of the trainer."""
    copies: list[Any] = []

    def keep(net: Numbers) -> None:
        copies.append(copy.deepcopy(net.logger))
        copies.append(pickle.loads(pickle.dumps(net.logger)))

    loggers = [CSVLogger(tmp_path), Pictures()]
    Trainer(**QUIET, logger=loggers, default_root_dir=tmp_path).fit(Numbers(keep), DATA[:1])
    assert [type(one) for one in copies] == [CSVLogger, CSVLogger]
    assert {one.log_dir for one in copies} == {loggers[0].log_dir}


@pytest.mark.parametrize("shared", [True, False], ids=["the same logger", "a new one"])
def test_resuming_an_earlier_checkpoint_in_the_same_folder(shared: bool, tmp_path: Path) -> None:
    """A run from an earlier checkpoint that writes to the same version replaces what came after it."""
    flags: dict[str, Any] = {**QUIET, "enable_checkpointing": True, "default_root_dir": tmp_path, "max_epochs": 2}
    saves = ModelCheckpoint(save_top_k=-1, every_n_epochs=1)
    logger = CSVLogger(tmp_path, version=0)
    Trainer(**flags, logger=logger, callbacks=[saves]).fit(Numbers(), DATA)
    (first,) = tmp_path.rglob("epoch=0*.ckpt")
    logger = logger if shared else CSVLogger(tmp_path, version=0)
    changed = [batch + 100 for batch in DATA]
    Trainer(**flags, logger=logger).fit(Numbers(), changed, ckpt_path=first)
    with open(Path(logger.log_dir) / "metrics.csv", encoding="utf-8") as file:
        rows = [(int(row["step"]), float(row["x"])) for row in csv.DictReader(file)]
    assert rows == [(step, step % 8 + (100.0 if step > 7 else 0.0)) for step in range(16)]
    assert len(list(Path(logger.log_dir).glob("metrics*.csv"))) == 1


def test_folder_that_vanishes(tmp_path: Path) -> None:
    """A CSV file whose folder somebody removes in the middle of a run is written again, whole."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)

    def remove(net: Numbers) -> None:
        if net.global_step == 4:
            logger.flush()
            shutil.rmtree(logger.log_dir)

    with pytest.warns(UserWarning, match="is gone; all of it is written again"):
        Trainer(**QUIET, logger=logger, default_root_dir=tmp_path).fit(Numbers(remove), DATA)
    with open(Path(logger.log_dir) / "metrics.csv", encoding="utf-8") as file:
        assert [float(row["x"]) for row in csv.DictReader(file)] == [float(step) for step in range(8)]


def test_moved_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A replay writes where the run's folder is now; one that has lost its place below its root is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(**QUIET, logger=CSVLogger(tmp_path / "old"), default_root_dir=tmp_path).fit(Numbers(), DATA)
    shutil.move(tmp_path / "old", tmp_path / "new")
    folder = tmp_path / "new" / "lightning_logs" / "version_0"
    (folder / "metrics.csv").unlink()
    assert command(["replay", str(folder)]) == 0
    assert (folder / "metrics.csv").exists()
    assert not (tmp_path / "old").exists()
    shutil.move(folder, tmp_path / "alone")
    assert command(["replay", str(tmp_path / "alone")]) == 1
    assert "must lie below its root as before" in capsys.readouterr().out


def test_other_files_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command takes no file but a journal, and changes none."""
    path = tmp_path / "metrics.csv"
    path.write_text("step,x\n0,1\n")
    assert command(["status", str(path)]) == 2
    assert command(["replay", str(path)]) == 2
    assert path.read_text() == "step,x\n0,1\n"
    assert "must hold a metrics.journal" in capsys.readouterr().err
