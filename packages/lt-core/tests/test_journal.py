"""Append metrics to a journal, damage it, cut it, and read its history."""

from __future__ import annotations

import errno
import math
import os
import pickle
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_core.journal import History, Journal
from lt_interface.errors import LTError

records = st.lists(
    st.tuples(
        st.sampled_from(["train", "validate", "test"]),
        st.integers(0, 2**40),
        st.dictionaries(st.text(max_size=12), st.floats() | st.integers(-(2**53), 2**53), max_size=4),
    ),
    max_size=12,
)


def filled(path: Path | None, n: int = 10) -> Journal:
    journal = Journal(path)
    for i in range(n):
        journal.append("train", "step", i, {"x": i / 2, "epoch": 0})
    return journal


def bits(value: float) -> bytes:
    return struct.pack("d", value) if not math.isnan(value) else b"nan"


@given(records, st.booleans())
@settings(deadline=None, max_examples=50)
def test_every_record_comes_back(tmp_path_factory: pytest.TempPathFactory, given: Any, named: bool) -> None:
    """Names of any script and values of every bit pattern are read as they were written, with and without a file."""
    journal = Journal(tmp_path_factory.mktemp("j") / "journal" if named else None)
    for stage, step, values in given:
        journal.append(stage, "step", step, values)
    found = list(journal.read())
    assert [(r.stage, r.axis, r.step, list(r.values)) for r in found] == [
        (stage, "step", step, list(values)) for stage, step, values in given
    ]
    assert [bits(v) for r in found for v in r.values.values()] == [bits(v) for _, _, d in given for v in d.values()]
    assert [r.sequence for r in found] == list(range(len(given)))
    assert (journal.sequence, journal.offset) == (len(given), found[-1].end if found else 0)


def test_reading_begins_at_an_offset(tmp_path: Path) -> None:
    """Whoever read up to a record's end goes on there, also while the journal grows."""
    journal = filled(tmp_path / "j", 4)
    ends = [r.end for r in journal.read()]
    assert [r.step for r in journal.read(ends[1])] == [2, 3]
    assert list(journal.read(ends[-1])) == []
    journal.append("train", "step", 9, {})
    assert [r.step for r in journal.read(ends[-1])] == [9]


def test_opening_again_goes_on(tmp_path: Path) -> None:
    """A journal that is opened again goes on with the next number, behind the last record."""
    filled(tmp_path / "j", 3).close()
    again = filled(tmp_path / "j", 2)
    assert [(r.sequence, r.step) for r in again.read()] == [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1)]


@pytest.mark.parametrize("lost", [1, 7, 30])
def test_torn_last_record_is_dropped(tmp_path: Path, lost: int) -> None:
    """A last line that a crash tore off is dropped, and the next record takes its place."""
    filled(tmp_path / "j", 3).close()
    os.truncate(tmp_path / "j", (tmp_path / "j").stat().st_size - lost)
    again = Journal(tmp_path / "j")
    assert (again.sequence, [r.step for r in again.read()]) == (2, [0, 1])
    again.append("train", "step", 7, {})
    assert [(r.sequence, r.step) for r in again.read()] == [(0, 0), (1, 1), (2, 7)]


@pytest.mark.parametrize("tail", [b"\0" * 100, b"\0" * 50 + b"\n", b"garbage\n"])
def test_rubbish_at_the_end_is_dropped(tmp_path: Path, tail: bytes) -> None:
    """What a crashed file system left behind the last record goes, too."""
    journal = filled(tmp_path / "j", 2)
    size = journal.offset
    journal.close()
    with open(tmp_path / "j", "ab") as file:
        file.write(tail)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert Journal(tmp_path / "j").offset == size == (tmp_path / "j").stat().st_size
    kept = tmp_path / "j.damaged"
    assert (len(warned), kept.exists() and kept.read_bytes()) == ((1, tail) if b"\n" in tail else (0, False))


def test_damage_in_the_middle_costs_one_record(tmp_path: Path) -> None:
    """One flipped bit costs the record that it is in, is reported, and no later record is lost."""
    place = [r.end for r in filled(tmp_path / "j", 10).read()][4] + 5  # a letter of the sixth: still valid JSON
    data = bytearray((tmp_path / "j").read_bytes())
    data[place] ^= 1
    (tmp_path / "j").write_bytes(data)
    with pytest.warns(UserWarning, match="1 of 10 records"):
        journal = Journal(tmp_path / "j")
    assert (journal.sequence, journal.offset) == (10, len(data))
    assert [r.step for r in journal.read()] == [0, 1, 2, 3, 4, 6, 7, 8, 9]


@given(st.integers(0, 8), st.integers(0, 4))
@settings(deadline=None, max_examples=20)
def test_resuming_is_as_if_nothing_came_after(tmp_path_factory: pytest.TempPathFactory, keep: int, more: int) -> None:
    """A journal that goes on from a place reads as the one that never had the rest, now and when opened again."""
    path = tmp_path_factory.mktemp("j") / "j"
    journal = filled(path, keep)
    offset = journal.offset
    for i in range(5):
        journal.append("train", "step", 100 + i, {"gone": 1.0})
    journal.resume(offset)
    for i in range(more):
        journal.append("train", "step", 50 + i, {"x": 1.0})
    expected = [*range(keep), *range(50, 50 + more)]
    for each in (journal, Journal(path)):
        assert [r.step for r in each.read()] == expected
        assert [r.sequence for r in each.read()] == list(range(len(expected)))


def test_a_resumed_run_goes_on_in_the_file_though_it_logs_nothing(tmp_path: Path) -> None:
    """A run that is resumed at its very end after another one began is the one that is opened again."""
    path = tmp_path / "metrics.journal"
    journal = Journal(path)
    journal.append("train", "step", 0, {"x": 0.0})
    end = journal.offset
    journal.begin()
    journal.append("train", "step", 0, {"x": 1.0})
    journal.resume(end)
    journal.close()
    assert [record.values["x"] for record in Journal(path).read()] == [0.0]


@pytest.mark.parametrize("offset", [3, 10**6])
def test_resuming_only_at_a_record(tmp_path: Path, offset: int) -> None:
    """An offset that is no record's end is refused, and the journal goes on as it was."""
    journal = filled(tmp_path / "j", 3)
    with pytest.raises(ValueError, match="end of a record"):
        journal.resume(offset)
    assert journal.offset == (tmp_path / "j").stat().st_size


def test_full_disk_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is full one warning reports it, training goes on, and nothing is missing once there is room."""
    journal = filled(tmp_path / "j", 1)
    write, room = os.write, [20]

    def short(fd: int, data: bytes) -> int:
        if fd != journal._fd or room[0] < 0:
            return write(fd, data)
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken, room[0] = write(fd, data[: room[0]]), 0
        return taken

    monkeypatch.setattr(os, "write", short)
    with pytest.warns(UserWarning, match="No space left"):
        journal.append("train", "step", 1, {"x": 1.0})
    journal.append("train", "step", 2, {"x": 1.0})
    assert [r.step for r in Journal(tmp_path / "j").read()] == [0]  # no part of a record is left
    assert [r.step for r in journal.read()] == [0, 1, 2]  # readers need not wait for the disk
    ends = [r.end for r in journal.read()]
    assert [[r.step for r in journal.read(end)] for end in (0, *ends)] == [[0, 1, 2], [1, 2], [2], []]
    assert journal.offset == ends[-1]
    room[0] = -1
    journal.append("train", "step", 3, {"x": 1.0})
    assert [(r.sequence, r.step) for r in journal.read()] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert [r.end for r in journal.read()][:3] == ends  # where they were said to be
    assert journal.offset == (tmp_path / "j").stat().st_size


def test_killed_process_loses_nothing(tmp_path: Path) -> None:
    """What was appended is in the file though the process was killed without closing it."""
    program = (
        "import os, signal, sys; from lt_core.journal import Journal; j = Journal(sys.argv[1])\n"
        "for i in range(50): j.append('train', 'step', i, {'x': i})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "j")], check=False, timeout=120)
    assert [r.step for r in Journal(tmp_path / "j").read()] == list(range(50))


def test_one_write_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is one write, so that a reader sees all of it or nothing, and no fsync is waited for."""
    journal, write = Journal(tmp_path / "j"), os.write
    calls: list[int] = []

    def counted(fd: int, data: bytes) -> int:
        calls.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", counted)
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(-1))
    journal.append("train", "step", 0, {"x": 1.0})
    assert calls == [journal.offset]


def test_history_holds_epochs_and_steps(tmp_path: Path) -> None:
    """The history has a row for each epoch of a fit, nan where a name is missing, and each name's series by step."""
    journal = Journal(tmp_path / "j")
    journal.append("train", "step", 0, {"loss": 1.0, "epoch": 0}, epoch=0)
    journal.append("validate", "step", 0, {"val_loss": 3.0, "epoch": 7.0}, epoch=0)
    journal.append("train", "step", 5, {"loss": 0.5, "epoch": 1}, epoch=1)
    journal.append("train", "step", 6, {"loss": 0.25, "epoch": 1}, epoch=1)
    journal.append("validate", "step", 6, {"val_loss": 9.0, "epoch": 2})
    for found in (journal, pickle.loads(pickle.dumps(journal)), journal.in_memory()):
        history = History.read(found)
        assert history.keys() == {"loss", "val_loss", "epoch"}
        assert (history["loss"], history["epoch"], history["val_loss"][0]) == ([1.0, 0.25], [0, 1], 3.0)
        assert math.isnan(history["val_loss"][1])
        assert history.steps["loss"] == {0: 1.0, 5: 0.5, 6: 0.25}
        assert history.steps["val_loss"] == {0: 3.0}


def test_history_draws_a_picture(tmp_path: Path) -> None:
    """Training and validation of one quantity share a panel, and the picture is saved."""
    journal = Journal(None)
    for i in range(3):
        journal.append("train", "step", i, {"train_loss": 1.0 / (i + 1), "val_loss": 0.5, "acc_epoch": i}, epoch=i)
    history = History.read(journal)
    figure = history.plot(tmp_path / "curve.png")
    assert [[line.get_label() for line in axes.lines] for axes in figure.axes] == [
        ["train_loss", "val_loss"], ["acc_epoch"]
    ]  # fmt: skip
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.lines[0].get_label() for axes in history.plot(keys=["val_loss"]).axes] == ["val_loss"]
    with pytest.raises(KeyError, match="val_los"):
        history.plot(keys=["val_los"])


def test_history_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib the error is the command that installs it."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "lt_core.tracking.picture", raising=False)
    with pytest.raises(LTError, match=r"pip install 'lt-core\[plot\]'"):
        History().plot()
