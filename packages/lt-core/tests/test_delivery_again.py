"""What a logger has is known by the logger and by the record: across cuts, other loggers and two processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lt_core.journal import Journal
from lt_core.journal.__main__ import main as command
from lt_core.loggers import CSVLogger, Logger
from lt_core.tracking import outbox as calls_module
from lt_core.tracking import sender as module
from lt_core.tracking.lock import JournalLock
from lt_core.tracking.sender import Delivery
from lt_interface import ConfigError, Record


class Steps(Logger):
    """Logger that keeps steps, and is away while a test sets it so."""

    def __init__(self, away: Exception | None = None) -> None:
        self.away, self.steps = away, []  # type: ignore[var-annotated]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.away is not None:
            raise self.away
        self.steps.append(step)


def append(journal: Journal, *steps: int) -> None:
    for step in steps:
        journal.append("train", "step", step, {"x": float(step)})


def deliver(journal: Journal, logger: Any) -> Any:
    delivery = Delivery(logger, journal, start=None)
    delivery.start()
    delivery.stop("success", 20)
    return logger


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"POLL_SECONDS": 0.01, "FIRST_RETRY_SECONDS": 0.01}.items():
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(calls_module, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(calls_module, "LAST_RETRY_SECONDS", 0.05)


@pytest.fixture
def warned() -> Iterator[Callable[[], list[str]]]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield lambda: [str(w.message) for w in found]


@pytest.mark.parametrize("dies", [False, True], ids=["one process", "killed before it sent them"])
def test_other_records_after_a_cut_are_sent(dies: bool, tmp_path: Path) -> None:
    """A resumed run that logs at other steps than before loses nothing; what it logs as before is not sent again."""
    journal = Journal(tmp_path / "j")
    append(journal, 0, 1)
    place = journal.offset
    append(journal, *range(2, 20))
    logger = deliver(journal, Steps())
    journal.resume(place)
    append(journal, 10, 20, 30)
    if dies:
        journal.close()
        journal = Journal(tmp_path / "j")
    deliver(journal, logger)
    assert logger.steps == [*range(20), 20, 30]


def test_same_records_at_other_numbers_keep_their_time(tmp_path: Path) -> None:
    """Where a resumed run logs more between the old records, those keep their wall times."""
    journal = Journal(tmp_path / "j")
    append(journal, 0)
    place = journal.offset
    append(journal, 1, 2)
    before = {record.step: record.time for record in journal.read()}
    journal.resume(place)
    journal.append("validate", "epoch", 1, {"v": 1.0})
    append(journal, 1, 2)
    after = {record.step: record.time for record in journal.read() if record.stage == "train"}
    assert after == before


def test_another_logger_gets_everything(tmp_path: Path) -> None:
    """A logger that takes the place of another kind has nothing yet; one that returns goes on."""
    journal, mine = Journal(tmp_path / "j"), tmp_path / "mine"
    append(journal, 0, 1)
    deliver(journal, CSVLogger(mine))
    assert deliver(Journal(tmp_path / "j"), Steps()).steps == [0, 1]
    again = Journal(tmp_path / "j")
    append(again, 2)
    assert deliver(again, Steps()).steps == [2]


def test_loggers_of_one_kind_of_two_versions_are_kept_apart(tmp_path: Path) -> None:
    """In another process, given in another order, each goes on where the one of its version stopped."""

    class Versioned(Steps):
        def __init__(self, version: str, away: Exception | None = None) -> None:
            super().__init__(away)
            self._version = version

        @property
        def version(self) -> str:
            return self._version

    journal = Journal(tmp_path / "j")
    append(journal, 0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the one that is away did not take
        delivery = Delivery(Versioned("a", ConnectionError("away")), journal)
        delivery.start()
        delivery.stop("failed", 0.2)
    assert deliver(journal, Versioned("b")).steps == [0, 1]
    journal = Journal(tmp_path / "j")
    assert [deliver(journal, Versioned(version)).steps for version in "ba"] == [[], [0, 1]]


def test_refusing_everything_is_an_outage(tmp_path: Path, warned: Callable[[], list[str]]) -> None:
    """A logger that refuses record after record alike is at fault itself: they are kept, with two warnings in all."""
    journal, logger = Journal(tmp_path / "j"), Steps(ValueError("the run is gone"))
    append(journal, *range(50))
    deliver(journal, logger)
    assert len([m for m in warned() if "the run is gone" in m]) == 2
    logger.away = None
    deliver(journal, logger)
    assert logger.steps == list(range(3, 50))


@pytest.mark.parametrize("batches", [False, True])
def test_records_refused_now_and_then_are_no_outage(
    batches: bool, tmp_path: Path, warned: Callable[[], list[str]]
) -> None:
    """What lies between refused records is taken, however often one is refused alike, and one warning reports it."""

    class Some(Steps):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if step is not None and step % 3 == 1:
                raise ValueError("no such axis")
            super().log_metrics(metrics, step)

    class Records(Some):
        def log_records(self, records: Sequence[Record], unsure: bool) -> None:
            for record in records:
                if record.step not in self.steps:  # it may come again after a refusal
                    self.log_metrics(dict(record.values), record.step)

    journal, logger = Journal(tmp_path / "j"), Records() if batches else Some()
    append(journal, *range(30))
    deliver(journal, logger)
    assert logger.steps == [step for step in range(30) if step % 3 != 1]
    assert len([m for m in warned() if "no such axis" in m]) == 1


def test_errors_in_the_setup_are_outages(tmp_path: Path) -> None:
    """An error of ours, which is a ValueError too, is no fault of the record."""
    journal, logger = Journal(tmp_path / "j"), Steps(ConfigError("no such run"))
    append(journal, *range(5))
    deliver(journal, logger)
    logger.away = None
    assert deliver(journal, logger).steps == list(range(5))


def test_call_that_fails_holds_up_nobody(warned: Callable[[], list[str]]) -> None:
    """A call that fails goes behind the others, records come in time, and one warning reports it."""
    journal, logger, made = Journal(None), Steps(), []  # type: ignore[var-annotated]
    delivery = Delivery(logger, journal)
    delivery.start()
    fails = threading.Event()

    def bad() -> None:
        if not fails.is_set():
            raise ConnectionError("store is away")
        made.append("bad")

    delivery.later(bad, "picture a")
    delivery.later(lambda: made.append("good"), "picture b")
    append(journal, 0)
    end = time.monotonic() + 20
    while (logger.steps, made) != ([0], ["good"]):
        assert time.monotonic() < end
        time.sleep(0.005)
    fails.set()
    delivery.stop("success", 20)
    assert made == ["good", "bad"]
    assert warned() == ["Steps: picture a was not taken, ConnectionError: store is away. It is tried again."]


def test_a_call_that_failed_waits_except_at_the_end(
    monkeypatch: pytest.MonkeyPatch, warned: Callable[[], list[str]]
) -> None:
    """It is not tried again with each record, but at once when the run ends."""
    monkeypatch.setattr(calls_module, "FIRST_RETRY_SECONDS", 600.0)
    journal, logger, tried = Journal(None), Steps(), []  # type: ignore[var-annotated]
    delivery = Delivery(logger, journal)
    delivery.start()

    def bad() -> None:
        tried.append(len(logger.steps))
        if len(tried) == 1:
            raise ConnectionError("store is away")

    delivery.later(bad, "picture")
    for step in range(5):
        append(journal, step)
        logger.flush()
    assert len(logger.steps) == 5
    assert len(tried) == 1
    delivery.stop("success", 20)
    assert len(tried) == 2
    assert [m for m in warned() if "picture" in m]


def test_parameters_are_never_left_out(monkeypatch: pytest.MonkeyPatch, warned: Callable[[], list[str]]) -> None:
    """Where too many calls wait the oldest are left out and counted, but not the hyper-parameters."""
    monkeypatch.setattr(calls_module, "MOST_CALLS", 5)
    journal, logger, made = Journal(None), Steps(OSError("away")), []  # type: ignore[var-annotated]
    logger.log_hyperparams = lambda params, *a: made.append(params)  # type: ignore[method-assign]
    with logger.exclusive():  # its thread waits
        delivery = Delivery(logger, journal)
        delivery.start({"lr": 0.1})
        for number in range(9):
            delivery.later(lambda number=number: made.append(number), f"picture {number}")
        logger.away = None
    delivery.stop("success", 20)
    assert made in ([{"lr": 0.1}, 5, 6, 7, 8], [{"lr": 0.1}, 4, 5, 6, 7, 8])
    assert any("more than 5 calls wait" in m for m in warned())
    assert any("calls before them" in m for m in warned())


def test_parameters_that_failed_are_not_left_out_for_want_of_room(
    monkeypatch: pytest.MonkeyPatch, warned: Callable[[], list[str]]
) -> None:
    """Hyper-parameters that wait for another try keep their place, however many calls come behind them."""
    monkeypatch.setattr(calls_module, "MOST_CALLS", 5)
    journal, logger, made, back = Journal(None), Steps(), [], threading.Event()  # type: ignore[var-annotated]

    def log_hyperparams(params: Any, *_: Any) -> None:
        if not back.is_set():
            raise ConnectionError("away")
        made.append(params)

    logger.log_hyperparams = log_hyperparams  # type: ignore[method-assign]
    delivery = Delivery(logger, journal)
    delivery.start({"lr": 0.1})
    end = time.monotonic() + 20
    while not any("hyper-parameters was not taken" in m for m in warned()):
        assert time.monotonic() < end
        time.sleep(0.005)
    for number in range(9):
        delivery.later(lambda number=number: made.append(number), f"picture {number}")
    back.set()
    delivery.stop("success", 20)
    assert {"lr": 0.1} in made
    assert made[-1] in (8, {"lr": 0.1})


def test_flush_inside_exclusive_does_not_wait() -> None:
    """Who holds the logger's lock waits for nobody in flush; and a call that hangs holds up no flush."""
    journal, logger = Journal(None), Steps()
    logger.flush_timeout = 60.0
    delivery = Delivery(logger, journal)
    delivery.start()
    begun = time.monotonic()
    with logger.exclusive():
        append(journal, 0)
        logger.flush()
    assert time.monotonic() - begun < 10
    logger.flush()
    assert logger.steps == [0]
    delivery.stop("success", 20)


def test_flush_beside_a_store_that_is_away() -> None:
    """A picture that cannot be sent keeps flush from neither metrics nor its return."""
    journal, logger = Journal(None), Steps()
    logger.flush_timeout = 60.0
    delivery = Delivery(logger, journal)
    delivery.start()

    def fail() -> None:
        raise ConnectionError("store is away")

    delivery.later(fail, "picture")
    append(journal, 0)
    begun = time.monotonic()
    with pytest.warns(UserWarning, match="picture was not taken"):
        logger.flush()
    assert time.monotonic() - begun < 20
    assert logger.steps == [0]
    with pytest.warns(UserWarning, match="not sent: picture"):
        delivery.stop("success", 20)


def test_long_end_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing a logger, and sending its last checkpoint, may take longer than a metric does."""
    monkeypatch.setattr(module, "HANG_SECONDS", 0.1)
    ended = []

    class Slow(Steps):
        def finalize(self, status: str) -> None:
            time.sleep(0.6)
            ended.append(status)

    delivery = Delivery(Slow(), Journal(None))
    delivery.start()
    delivery.later(lambda: time.sleep(0.6), "checkpoint")
    delivery.stop("success", 20)
    assert ended == ["success"]


def test_progress_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long call of records that says it goes on is not taken for one that hangs."""
    monkeypatch.setattr(module, "HANG_SECONDS", 0.3)

    class Chunks(Logger):
        done = 0

        def log_records(self, records: Any, unsure: bool = False) -> None:
            for _ in range(6):
                time.sleep(0.1)
                self.progressed()
            self.done += len(records)

    journal, logger = Journal(None), Chunks()
    append(journal, 0)
    delivery = Delivery(logger, journal)
    delivery.start()
    delivery.stop("success", 20)
    assert logger.done == 1


def test_status_changes_nothing(tmp_path: Path) -> None:
    """Asking what is left, while a line is being written, leaves the journal as it is."""
    journal = Journal(tmp_path / "metrics.journal")
    append(journal, 0)
    deliver(journal, Steps())
    with open(tmp_path / "metrics.journal", "ab") as file:
        file.write(b'[1,"train","st')
    before = (tmp_path / "metrics.journal").read_bytes()
    assert command(["status", str(tmp_path)]) == 0
    assert (tmp_path / "metrics.journal").read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="locks of this kind")
def test_lock_is_the_process_s(tmp_path: Path) -> None:
    """Parts of one process hold it together, one who wants it alone does not get it, and others neither."""
    first, second, third = (JournalLock(tmp_path / "j") for _ in range(3))
    assert first.acquire()
    assert second.acquire()
    assert not third.acquire(alone=True)
    code = "import sys; from lt_core.tracking.lock import JournalLock; print(JournalLock(sys.argv[1]).acquire())"

    def other() -> str:
        command = [sys.executable, "-c", code, str(tmp_path / "j")]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    first.release()
    assert other() == "False"
    Path(f"{tmp_path / 'j'}.lock").read_bytes()  # as a backup of the folder does
    assert other() == "False"
    child = os.fork()
    if not child:
        time.sleep(60)  # a worker that outlives its parent's lock
        os._exit(0)
    second.release()
    try:
        assert other() == "True"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_what_an_earlier_holder_left_in_the_locks_file_is_replaced(tmp_path: Path) -> None:
    """However long the name of a holder that died was, the file names the one of now, and nothing of the old one."""
    lock = JournalLock(tmp_path / "j")
    Path(lock.path).write_text("4294967295 " + "a-very-long-name-of-a-machine" * 9, encoding="utf-8")
    assert lock.acquire(alone=True)
    assert Path(lock.path).read_text(encoding="utf-8") == f"{os.getpid()} {os.uname().nodename}"
    assert f"process {os.getpid()} on {os.uname().nodename}" in str(lock.refusal("here", "one at a time", "Wait."))
    lock.release()


def test_a_full_disk_is_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock whose holder's name finds no room is held all the same."""

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with JournalLock(tmp_path / "j") as lock:
        assert lock.acquire()
        lock.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="locks of this kind")
def test_the_lock_s_file_goes_with_its_holder(tmp_path: Path) -> None:
    """One who opened the file while another gave it up does not hold the old file beside a holder of a new one."""
    first, second = JournalLock(tmp_path / "j"), JournalLock(tmp_path / "j")
    assert first.acquire(alone=True)
    code = (
        "import sys; from lt_core.tracking.lock import JournalLock; import fcntl\n"
        "flock, lock = fcntl.flock, JournalLock(sys.argv[1])\n"
        "def waits(fd, how):\n"
        "    fcntl.flock = flock\n"
        "    print('opened', flush=True); sys.stdin.readline(); flock(fd, how)\n"
        "fcntl.flock = waits\n"
        "print(lock.acquire(), flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "j")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin
        assert other.stdout
        assert other.stdout.readline() == "opened\n"
        first.release()
        assert not Path(first.path).exists()
        other.stdin.write("go on\n")
        other.stdin.flush()
        assert other.stdout.readline() == "True\n"
        assert not second.acquire()
        other.communicate("\n", timeout=60)


def test_hung_call_that_comes_back_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A logger whose call hung over the end of one run and is fed by the next gets each record once."""
    monkeypatch.setattr(module, "HANG_SECONDS", 0.2)

    class Hangs(Steps):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if step == 1 and 1 not in self.steps:
                time.sleep(1.0)
            super().log_metrics(metrics, step)

    journal, logger = Journal(None), Hangs()
    append(journal, 0, 1, 2)
    first = Delivery(logger, journal)
    first.start()
    with pytest.warns(UserWarning, match="2 records of metrics were not taken"):
        first.stop("success", 20)
    append(journal, 3)
    second = Delivery(logger, journal, start=None)
    second.start()
    end = time.monotonic() + 20
    while len(logger.steps) < 4:
        assert time.monotonic() < end
        time.sleep(0.01)
    second.stop("success", 20)
    assert logger.steps == [0, 1, 2, 3]


def test_times_tell_records_apart() -> None:
    """No two records have one wall time, however fast they come."""
    journal = Journal(None)
    append(journal, *range(2000))
    times = [record.time for record in journal.read()]
    assert times == sorted(set(times))


def test_room_that_comes_after_the_run(tmp_path: Path) -> None:
    """What a full disk refused to the run's end is written if there is room when the process ends."""
    program = (
        "import os, sys, warnings; warnings.simplefilter('ignore'); from lt_core.journal import Journal\n"
        "j, write = Journal(sys.argv[1]), os.write\n"
        "def full(fd, data): raise OSError(28, 'No space left on device')\n"
        "j.append('train', 'step', 0, {'x': 0.0}); os.write = full\n"
        "for i in range(1, 9): j.append('train', 'step', i, {'x': float(i)})\n"
        "assert j.write_waiting() == 8; os.write = write"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "j")], check=True, timeout=120)
    assert [record.step for record in Journal(tmp_path / "j").read()] == list(range(9))
