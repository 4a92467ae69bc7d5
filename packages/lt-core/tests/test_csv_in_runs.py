"""One CSV file over several trainers, calls, processes and resumed runs: every row that was logged is there once."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from logged import logged
from quiet import SILENT, Numbers
from torch import Tensor

from lt_core import Trainer
from lt_core.callbacks import ModelCheckpoint
from lt_core.journal.__main__ import main as command
from lt_core.loggers import CSVLogger

QUIET: dict[str, Any] = {**SILENT, "log_every_n_steps": 1, "max_epochs": 1}
DATA = [torch.full((1, 1), float(v)) for v in range(4)]
pytestmark = pytest.mark.filterwarnings("ignore:.*it holds the state of callbacks that are not here")


def column(logger: CSVLogger, name: str) -> list[float]:
    with open(logger.metrics_file_path, encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def trainer(logger: Any, folder: Path, **more: Any) -> Trainer:
    return Trainer(**{**QUIET, "logger": logger, "default_root_dir": folder, "enable_checkpointing": False, **more})


def at(value: float) -> list[Tensor]:
    return [batch + value for batch in DATA]


@pytest.mark.parametrize("calls", ["fftt", "ftft", "ftftft", "fvf", "tff", "fFfT"])
def test_folds_that_share_a_logger_lose_nothing(calls: str, tmp_path: Path) -> None:
    """Trainers that fit (again: F) and test in any order with one logger leave every row of each in one file."""
    logger, fits, tests, last = CSVLogger(tmp_path), [], [], None
    for number, call in enumerate(calls):
        if call in "fF":
            last = trainer(logger, tmp_path) if call == "f" or last is None else last
            last.max_epochs = (last.current_epoch or 0) + 1
            last.fit(Numbers(), at(10 * number))
            fits += [value + 10 * number for value in range(4)]
        elif call in "tT":
            last = trainer(logger, tmp_path) if last is None or call == "T" else last
            last.test(Numbers(), at(10 * number), verbose=False)
            tests.append(10 * number + 1.5)
    assert column(logger, "x") == fits
    assert (column(logger, "y") if tests else []) == tests
    assert sorted(path.name for path in Path(logger.log_dir).glob("*.csv")) == ["metrics.csv"]


def test_a_test_after_a_fit_writes_its_own_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file only grows, and the logger gets no record a second time."""
    got: list[int] = []
    take = CSVLogger.log_records

    def note(self: CSVLogger, records: Any, unsure: bool = False) -> None:
        got.extend(record.sequence for record in records)
        take(self, records, unsure)

    monkeypatch.setattr(CSVLogger, "log_records", note)
    logger = CSVLogger(tmp_path)
    one = trainer(logger, tmp_path)
    one.fit(Numbers(), DATA)
    before, sent = Path(logger.metrics_file_path).read_bytes(), len(got)
    assert sent == 4
    one.test(Numbers(), DATA, verbose=False)
    trainer(logger, tmp_path).test(Numbers(), DATA, verbose=False)
    assert len(got) - sent == 2
    assert column(logger, "x") == [0.0, 1.0, 2.0, 3.0]
    assert before.splitlines()[1].split(b",")[1] in Path(logger.metrics_file_path).read_bytes()


def test_a_test_in_another_process_adds_to_the_file(tmp_path: Path) -> None:
    """A new logger of the same version goes on in the file where the call is no fit; a new fit sets the file aside."""
    trainer(CSVLogger(tmp_path, version=0), tmp_path).fit(Numbers(), DATA)
    logger = CSVLogger(tmp_path, version=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(logger, tmp_path).test(Numbers(), DATA, verbose=False)
    assert (column(logger, "x"), column(logger, "y")) == ([0.0, 1.0, 2.0, 3.0], [1.5])
    with pytest.warns(UserWarning, match="are now in"):
        trainer(CSVLogger(tmp_path, version=0), tmp_path).fit(Numbers(), at(10))
    assert column(logger, "x") == [10.0, 11.0, 12.0, 13.0]


@pytest.mark.parametrize(
    ("word", "shared", "inside"),
    [
        ("last", False, "checkpoints"),
        ("last", True, ""),
        ("path", False, ""),
        ("path", True, "a/b"),
        ("last", False, "a/b"),
    ],
)
def test_a_flat_folder_is_gone_on_in(word: str, shared: bool, inside: str, tmp_path: Path) -> None:
    """A run that lies in no version's folder is resumed in its file: no stale metrics-1.csv, each row once."""

    def make() -> CSVLogger:
        return CSVLogger(tmp_path, name="", version="")

    def run(logger: CSVLogger, epochs: int, ckpt: Any = None) -> None:
        saves = ModelCheckpoint(dirpath=tmp_path / inside, filename="e{epoch}", save_top_k=-1, save_last=True)
        flags = {"callbacks": [saves], "enable_checkpointing": True, "max_epochs": epochs}
        trainer(logger, tmp_path, **flags).fit(Numbers(), DATA, ckpt_path=ckpt)

    logger = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(logger, 2)
        logger = logger if shared else make()
        path = sorted((tmp_path / inside).glob("e*0*.ckpt"))[0]
        run(logger, 3, "last" if word == "last" else path)
    assert column(logger, "x") == [0.0, 1.0, 2.0, 3.0] * 3
    assert [path.name for path in tmp_path.rglob("*.csv")] == ["metrics.csv"]


@pytest.mark.parametrize("word", ["last", "path"])
def test_checkpoints_elsewhere_go_on_in_the_file(word: str, tmp_path: Path) -> None:
    """Where checkpoints lie outside of the logger's folder, the run they are of goes on in its file all the same."""
    for epochs in (2, 3):
        saves = ModelCheckpoint(dirpath=tmp_path / "c", filename="{epoch}", save_top_k=-1, save_last=True)
        logger = CSVLogger(tmp_path / "logs", version=0)
        ckpt = None if epochs == 2 else "last" if word == "last" else tmp_path / "c" / "epoch=0.ckpt"
        flags = {"callbacks": [saves], "enable_checkpointing": True, "max_epochs": epochs}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(logger, tmp_path, **flags).fit(Numbers(), DATA, ckpt_path=ckpt)
    assert column(logger, "x") == [0.0, 1.0, 2.0, 3.0] * 3
    assert [path.name for path in tmp_path.rglob("*.csv")] == ["metrics.csv"]


def test_a_resumed_fold_leaves_the_other_fold_s_rows(tmp_path: Path) -> None:
    """Of a file of two trainers a resumed run takes out its own rows behind the checkpoint, and no others."""
    logger = CSVLogger(tmp_path)
    saves = ModelCheckpoint(dirpath=tmp_path / "a", filename="{epoch}", save_top_k=-1)
    with_saves = {"callbacks": [saves], "enable_checkpointing": True}

    def own(net: Numbers) -> None:
        logger.log_metrics({"own": net.global_step + 0.25}, step=net.global_step)

    trainer(logger, tmp_path, **with_saves, max_epochs=3).fit(Numbers(own), DATA)
    trainer(logger, tmp_path, max_epochs=2).fit(Numbers(), at(50))
    for _ in range(2):
        trainer(logger, tmp_path, max_epochs=2).fit(
            Numbers(own), at(20), ckpt_path=next((tmp_path / "a").glob("epoch=0*"))
        )
    fold = [50.0, 51.0, 52.0, 53.0]
    assert column(logger, "x") == [0.0, 1.0, 2.0, 3.0, *fold, *fold, 20.0, 21.0, 22.0, 23.0]
    owned = column(logger, "own")
    assert owned[:4] == [0.25, 1.25, 2.25, 3.25]
    assert owned[-4:] == [4.25, 5.25, 6.25, 7.25]


JOB = """
import os, signal, sys, warnings
sys.path.insert(0, sys.argv[2])
warnings.simplefilter("ignore")
from test_csv_in_runs import *
folder, dies = Path(sys.argv[1]), int(sys.argv[3])
def die(net):
    if net.global_step == dies:
        if dies % 2: net.trainer.logger.flush()
        os.kill(os.getpid(), signal.SIGKILL)
saves = ModelCheckpoint(every_n_train_steps=3, save_last=True)
trainer(CSVLogger(folder), folder, callbacks=[saves], enable_checkpointing=True, max_epochs=4).fit(
    Numbers(die), DATA, ckpt_path="last")
"""


def test_killed_runs_leave_the_rows_of_one_that_was_not(tmp_path: Path) -> None:
    """Deaths at any step, flushed or not, and resumes: the file, the history and what the command says are whole."""
    for dies in (5, 8, 99):
        arguments = [sys.executable, "-c", JOB, str(tmp_path), str(Path(__file__).parent), str(dies)]
        done = subprocess.run(arguments, check=False, timeout=120, capture_output=True, text=True)
        assert done.returncode == (-signal.SIGKILL if dies < 99 else 0), done.stderr
    folders = sorted((tmp_path / "lightning_logs").iterdir())
    logger = CSVLogger(tmp_path, version=len(folders) - 1)
    assert column(logger, "x") == [0.0, 1.0, 2.0, 3.0] * 4
    assert command(["status", logger.log_dir]) == 0


def test_the_command_says_what_it_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints the journal and a line for each logger: what was sent, what is left and why; nothing is sent twice."""
    logger = CSVLogger(tmp_path, version=0)
    trainer(logger, tmp_path).fit(Numbers(), DATA)
    folder = Path(logger.log_dir)
    assert command(["status", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'metrics.journal'}\n  CSVLogger: complete\n"
    (ack,) = folder.glob("*.ack")
    shutil.copy(ack, tmp_path / "kept")
    ack.unlink()
    Path(logger.metrics_file_path).unlink()
    assert command(["status", str(folder)]) == 1
    assert "CSVLogger: 4 left" in capsys.readouterr().out
    assert command(["replay", str(folder)]) == 0
    assert "CSVLogger: 4 records sent, complete" in capsys.readouterr().out
    assert column(logger, "x") == [0.0, 1.0, 2.0, 3.0]
    assert command(["replay", str(folder), "--timeout", "5"]) == 0
    assert "CSVLogger: 0 records sent, complete" in capsys.readouterr().out
    assert column(logger, "x") == [0.0, 1.0, 2.0, 3.0]
    done = subprocess.run(
        [sys.executable, "-m", "lt_core.journal", "status", str(folder)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "  CSVLogger: complete")


def test_what_lies_in_a_lock_file_stops_nobody(tmp_path: Path) -> None:
    """A lock file that a dead process left, with its number or with rubbish, is taken over, and goes with the run."""
    folder = tmp_path / "lightning_logs" / "version_0"
    folder.mkdir(parents=True)
    for left in ("999999 elsewhere and a longer name than any of ours", "rubbish", "", "\0\0"):
        (folder / "metrics.journal.lock").write_text(left)
        logger = CSVLogger(tmp_path, version=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(logger, tmp_path).fit(Numbers(), DATA)
        assert not list(tmp_path.rglob("*.lock"))


def test_segments_name_their_parents(tmp_path: Path) -> None:
    """A journal only grows: a resumed run and another run are segments behind what was there."""
    saves = ModelCheckpoint(save_top_k=-1, filename="{epoch}")
    logger = CSVLogger(tmp_path, version=0)
    flags = {"callbacks": [saves], "enable_checkpointing": True}
    trainer(logger, tmp_path, **flags, max_epochs=2).fit(Numbers(), DATA)
    path = Path(logger.log_dir, "metrics.journal")
    first = path.read_bytes()
    resumed = trainer(logger, tmp_path, max_epochs=2)
    resumed.fit(Numbers(), at(9), ckpt_path=next(Path(logger.log_dir).rglob("epoch=0*")))
    assert logged(resumed)["x"] == [0.0, 1.0, 2.0, 3.0, 9.0, 10.0, 11.0, 12.0]
    trainer(logger, tmp_path).fit(Numbers(), DATA)
    data = path.read_bytes()
    assert data.startswith(first)
    parents = [json.loads(line.split(b"\t")[0])["parent"] for line in data.splitlines() if line.startswith(b"{")]
    assert parents == [first.index(b"[4,"), None]


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.filterwarnings("ignore:CSVLogger. version 1 holds metrics of an earlier run")
def test_a_journal_that_a_run_leaves_for_another_folder_stays_as_it_is(used: bool, tmp_path: Path) -> None:
    """A resume that logs elsewhere takes its records along, apart from those of a run there; the old file stays."""
    saves = ModelCheckpoint(save_top_k=-1, filename="{epoch}")
    logger = CSVLogger(tmp_path, version=0)
    flags = {"callbacks": [saves], "enable_checkpointing": True}
    trainer(logger, tmp_path, **flags, max_epochs=2).fit(Numbers(), DATA)
    path = Path(logger.log_dir, "metrics.journal")
    with path.open("ab") as file:
        file.write(b'[0,"torn')
    before = path.read_bytes()
    if used:
        trainer(CSVLogger(tmp_path, version=1), tmp_path).fit(Numbers(), at(50))
    resumed = trainer(CSVLogger(tmp_path, version=1), tmp_path, max_epochs=2)
    resumed.fit(Numbers(), at(9), ckpt_path=next(Path(logger.log_dir).rglob("epoch=0*")))
    assert logged(resumed)["x"] == [0.0, 1.0, 2.0, 3.0, 9.0, 10.0, 11.0, 12.0]
    assert path.read_bytes() == before
    assert column(CSVLogger(tmp_path, version=1), "x") == logged(resumed)["x"]


def test_the_journal_is_on_the_disk_before_a_checkpoint_that_names_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a checkpoint holds of the journal's place is synced before the file takes its name."""
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def replaced(source: Any, target: Any) -> None:
        done.append(("replace", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    run = trainer(CSVLogger(tmp_path, version=0), tmp_path)
    run.fit(Numbers(), DATA)
    done.clear()
    run.save_checkpoint(tmp_path / "a.ckpt")
    assert ("fsync", "metrics.journal") in done[: done.index(("replace", "a.ckpt"))]


def test_a_run_in_a_version_goes_on_there_beside_one_in_the_root(tmp_path: Path) -> None:
    """Where a flat run has its journal in the root, a checkpoint of a version below it belongs to that version."""
    trainer(CSVLogger(tmp_path, name="", version=""), tmp_path).fit(Numbers(), at(50))
    logger = CSVLogger(tmp_path, name="", version=0)
    saves = ModelCheckpoint(save_top_k=-1, filename="{epoch}")
    trainer(logger, tmp_path, callbacks=[saves], enable_checkpointing=True, max_epochs=2).fit(Numbers(), DATA)
    again = CSVLogger(tmp_path, name="", version=0)
    resumed = trainer(again, tmp_path, max_epochs=2)
    resumed.fit(Numbers(), at(9), ckpt_path=next(Path(logger.log_dir).rglob("epoch=0*")))
    assert column(logger, "x") == logged(resumed)["x"] == [0.0, 1.0, 2.0, 3.0, 9.0, 10.0, 11.0, 12.0]
    assert column(CSVLogger(tmp_path, name="", version=""), "x") == [50.0, 51.0, 52.0, 53.0]
