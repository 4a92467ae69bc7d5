"""Feed loggers from a journal: in order, once, and without ever stopping the run."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lt_core.journal import Journal
from lt_core.loggers import Logger
from lt_core.tracking import sender as module
from lt_core.tracking.position import Acknowledgement
from lt_core.tracking.sender import Delivery


class Memory(Logger):
    """Logger that remembers what came, from where, and how it ended."""

    def __init__(self) -> None:
        self.steps: list[int | None] = []
        self.threads: set[str] = set()
        self.ended: list[str] = []
        self.saves = 0
        self.before: Callable[[int | None], None] = lambda step: None

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.before(step)
        self.steps.append(step)
        self.threads.add(threading.current_thread().name)

    def save(self) -> None:
        self.saves += 1

    def finalize(self, status: str) -> None:
        self.ended.append(status)


def append(journal: Journal, *steps: int) -> None:
    for step in steps:
        journal.append("train", "step", step, {"x": float(step)})


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(module, "FIRST_RETRY_SECONDS", 0.01)


Warned = Callable[[], list[str]]


@pytest.fixture
def warned() -> Iterator[Warned]:
    """Return what reads the warnings so far, of every thread."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield lambda: [str(w.message) for w in found]


def eventually(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_records_arrive_in_order_from_one_thread() -> None:
    """Each record reaches the logger once, in order, from a thread that is not the caller's, and then it is closed."""
    journal, logger = Journal(None), Memory()
    delivery = Delivery(logger, journal)
    append(journal, 0, 1)
    delivery.start()
    append(journal, 2)
    eventually(lambda: logger.steps == [0, 1, 2])  # nobody had to ask
    append(journal, 3)
    delivery.stop("success", 20)
    assert (logger.steps, logger.ended) == ([0, 1, 2, 3], ["success"])
    assert delivery.acknowledged == journal.offset
    assert logger.threads == {"lt-Memory"}
    assert logger.saves >= 1


def test_start_behind_what_the_logger_has() -> None:
    """A delivery that begins at an offset sends only what comes after."""
    journal, logger = Journal(None), Memory()
    append(journal, 0, 1)
    delivery = Delivery(logger, journal, start=journal.offset)
    append(journal, 2)
    delivery.start()
    assert delivery.flush(20)
    assert logger.steps == [2]
    delivery.stop("success", 20)


def test_failing_logger_is_tried_again(warned: Warned, caplog: pytest.LogCaptureFixture) -> None:
    """A logger that fails is reported once, misses nothing and stops nothing; one line says when it is over."""
    journal, logger, down = Journal(None), Memory(), threading.Event()
    down.set()
    caplog.set_level("INFO", "lt_core")

    def fail(step: int | None) -> None:
        if step and down.is_set():
            raise ConnectionError("no route to the server")

    logger.before = fail
    delivery = Delivery(logger, journal)
    append(journal, 0, 1, 2)
    delivery.start()
    assert not delivery.flush(20)
    assert not delivery.flush(20)
    assert logger.steps == [0]
    down.clear()
    eventually(lambda: logger.steps == [0, 1, 2])
    delivery.stop("success", 20)
    assert logger.steps == [0, 1, 2]
    assert ["no route" in m for m in warned()] == [True]
    assert ["works again" in line and "2 records" in line for line in caplog.messages] == [True]


def test_dead_server_at_the_end(tmp_path: Path, warned: Warned) -> None:
    """A run whose server stays away ends soon all the same, and reports what is missing and where it is."""
    journal, logger = Journal(tmp_path / "j"), Memory()

    def fail(step: int | None) -> None:
        raise ConnectionError("gone")

    logger.before = fail
    delivery = Delivery(logger, journal)
    append(journal, 0, 1)
    delivery.start()
    delivery.stop("failed", 20)
    assert ["gone" in warned()[0], "2 records" in warned()[1], str(tmp_path) in warned()[1]] == [True, True, True]
    assert logger.ended == ["failed"]


def test_refused_record_holds_up_no_other(warned: Warned) -> None:
    """A record that the logger cannot take is tried a few times, reported by name, and left out."""
    journal, logger = Journal(None), Memory()

    def refuse(step: int | None) -> None:
        if step == 1:
            raise ValueError("not a number")

    logger.before = refuse
    delivery = Delivery(logger, journal)
    delivery.start()
    append(journal, 0, 1, 2)
    eventually(lambda: logger.steps == [0, 2])
    delivery.stop("success", 20)
    assert [m for m in warned() if "refused step 1 (x) with ValueError: not a number" in m]
    assert delivery.acknowledged == journal.offset


def test_batch_refused_halfway_is_there_once(warned: Warned) -> None:
    """Where a logger took a part of a batch before it refused a record, that part does not come twice."""

    class Batches(Logger):
        def __init__(self) -> None:
            self.there: list[int] = []

        def log_records(self, records: list[Any], unsure: bool = False) -> None:
            for record in records:
                if record.step == 3:
                    raise ValueError("not this one")
                if not (unsure and record.sequence in self.there):
                    self.there.append(record.sequence)

    journal, logger = Journal(None), Batches()
    append(journal, *range(6))
    delivery = Delivery(logger, journal)
    delivery.start()
    delivery.stop("success", 20)
    assert logger.there == [0, 1, 2, 4, 5]
    assert [m for m in warned() if "refused step 3 (x) with ValueError: not this one" in m]


def test_what_was_not_saved_comes_again(warned: Warned) -> None:
    """Where a logger of records fails to save, all since the last save comes again, said to be in doubt."""

    class Buffered(Logger):
        def __init__(self) -> None:
            self.buffer: list[int] = []
            self.there: list[int] = []
            self.doubts: list[bool] = []
            self.fails = 0

        def log_records(self, records: list[Any], unsure: bool = False) -> None:
            self.doubts.append(unsure)
            self.buffer += [record.step for record in records]

        def save(self) -> None:
            buffer, self.buffer = self.buffer, []
            if self.fails:
                self.fails -= 1
                raise OSError("no room")
            self.there += buffer

    journal, logger = Journal(None), Buffered()
    delivery = Delivery(logger, journal)
    delivery.start()
    append(journal, 0, 1)
    assert delivery.flush(20)
    sure, logger.fails = len(logger.doubts), 2
    append(journal, 2, 3)
    eventually(lambda: not logger.fails)
    append(journal, 4)
    delivery.stop("success", 20)
    assert logger.there == [0, 1, 2, 3, 4]
    assert logger.doubts[: sure + 2] == [False] * (sure + 1) + [True]
    assert delivery.acknowledged == journal.offset
    assert len([m for m in warned() if "no room" in m]) == 1


def test_hanging_logger_is_left_behind() -> None:
    """A logger that hangs costs its own thread only: flush and stop come back in time, and say so."""
    journal, logger, go = Journal(None), Memory(), threading.Event()
    logger.before = lambda step: assert_set(go)
    delivery = Delivery(logger, journal)
    delivery.start()
    append(journal, 0)
    start = time.monotonic()
    assert not delivery.flush(0.05)
    with pytest.warns(UserWarning, match="1 records"):
        delivery.stop("success", 0.1)
    assert time.monotonic() - start < 5
    go.set()
    eventually(lambda: logger.ended == ["success"])


def assert_set(event: threading.Event) -> None:
    assert event.wait(20)


def test_closing_that_fails_is_told() -> None:
    """A logger that cannot close is a warning."""
    journal, logger = Journal(None), Memory()

    def broken(status: str) -> None:
        raise RuntimeError("cannot close")

    logger.finalize = broken  # type: ignore[method-assign]
    delivery = Delivery(logger, journal)
    delivery.start()
    with pytest.warns(UserWarning, match="cannot close"):
        delivery.stop("success", 20)


def test_logger_lock_is_held() -> None:
    """Values are written under the logger's lock, so that a user's group of calls stays together."""
    journal, logger = Journal(None), Memory()
    delivery = Delivery(logger, journal)
    delivery.start()
    with logger.exclusive():
        append(journal, 0)
        time.sleep(0.1)
        assert logger.steps == []
    assert delivery.flush(20)
    assert logger.steps == [0]
    delivery.stop("success", 20)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_neither_waits_nor_delivers() -> None:
    """A process forked while the logger hangs is there at once, can take its lock, and sends nothing."""
    journal, logger, go, inside = Journal(None), Memory(), threading.Event(), threading.Event()
    logger.before = lambda step: (inside.set(), assert_set(go))[0]  # type: ignore[func-returns-value]
    delivery = Delivery(logger, journal)
    delivery.start()
    append(journal, 0)
    assert inside.wait(20)
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        ok = logger._logger_lock().acquire(timeout=5) and not delivery.flush(0.1) and logger.steps == []
        delivery.stop("success", 0.1)
        os._exit(0 if ok and logger.ended == [] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert time.monotonic() - start < 15
    go.set()
    assert delivery.flush(20)
    delivery.stop("success", 20)
    assert (logger.steps, logger.ended) == ([0], ["success"])


# ---------------------------------------------------------------- acknowledgement


def delivered(journal: Journal, logger: Memory, start: int | None) -> list[int | None]:
    delivery = Delivery(logger, journal, start=start)
    delivery.start()
    assert delivery.flush(20)
    delivery.stop("success", 20)
    taken, logger.steps = logger.steps, []
    return taken


def test_new_process_goes_on_behind_what_was_acknowledged(tmp_path: Path) -> None:
    """What a tracker has is not sent again when the journal is opened again; what it missed is."""
    journal = Journal(tmp_path / "j")
    append(journal, 0, 1)
    assert delivered(journal, Memory(), 0) == [0, 1]
    append(journal, 2)
    again = Journal(tmp_path / "j")
    assert delivered(again, Memory(), None) == [2]
    assert delivered(again, Memory(), 0) == [0, 1, 2]


def test_records_made_anew_are_not_sent_twice(tmp_path: Path) -> None:
    """After a cut the records that come again are passed over up to where the tracker was."""
    journal = Journal(tmp_path / "j")
    append(journal, 0)
    mark = journal.offset, journal.sequence
    append(journal, 1, 2)
    assert delivered(journal, Memory(), 0) == [0, 1, 2]
    again = Journal(tmp_path / "j")
    again.resume(mark[0])
    append(again, 1, 2, 3)
    assert delivered(again, Memory(), None) == [3]


def test_each_logger_has_its_own_acknowledgement(tmp_path: Path) -> None:
    """Two loggers of one journal are kept apart, and one that comes again keeps its number."""
    journal, first, second = Journal(tmp_path / "j"), Memory(), Memory()
    append(journal, 0)
    assert delivered(journal, first, 0) == [0]
    append(journal, 1)
    assert delivered(journal, second, 0) == [0, 1]
    assert delivered(journal, first, None) == [1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["j", "j.0.ack", "j.0.logger", "j.1.ack", "j.1.logger"]


def test_acknowledgement_of_another_journal_counts_for_nothing(tmp_path: Path) -> None:
    """A new journal in the place of an old one is sent from its beginning."""
    journal = Journal(tmp_path / "j")
    append(journal, 0, 1, 2)
    assert delivered(journal, Memory(), 0) == [0, 1, 2]
    (tmp_path / "j").unlink()
    other = Journal(tmp_path / "j")
    append(other, 7, 8, 9, 10)
    assert delivered(other, Memory(), None) == [7, 8, 9, 10]
    (tmp_path / "j.0.ack").write_text("rubbish")
    assert delivered(Journal(tmp_path / "j"), Memory(), None) == [7, 8, 9, 10]


def test_an_acknowledgement_takes_the_place_of_a_longer_one(tmp_path: Path) -> None:
    """Of a line that a process before wrote, nothing is left behind the new one, however long it was."""
    journal = Journal(tmp_path / "j")
    append(journal, *range(9))
    pieces = tuple((start, start + 1) for start in range(0, journal.size, 4))
    for has in (pieces, ((0, journal.size),), pieces[:30], ((5, 9),)):
        kept = Acknowledgement(journal, 0)
        kept.keep(has, ())
        kept.close()
        assert Acknowledgement(journal, 0).has == has
    (tmp_path / "j.0.ack").unlink()
    kept = Acknowledgement(journal, 0)
    for has in ((), pieces, pieces[:30], ((5, 9),)):
        kept.keep(has, ())
        assert Acknowledgement(journal, 0).has == has
    kept.close()
