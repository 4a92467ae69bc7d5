"""Feed a logger from the journal, in a thread of its own: the loop never waits for a tracker."""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from lt_core.notices import info
from lt_core.tracking.description import Description, number_of
from lt_core.tracking.journal import Journal, Record
from lt_core.tracking.one_by_one import OneByOne
from lt_core.tracking.outbox import Call, Calls, exclusive, fed, is_refusal, report
from lt_core.tracking.position import Acknowledgement, Parts, holds, place_in, rest, union, up_to, without
from lt_interface import Logger
from lt_interface.abilities import ability, fact, takes_records
from lt_interface.hyperparameters import plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from threading import Thread

__all__ = ["Delivery"]

POLL_SECONDS = 0.2
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0
# A call that is out for longer than this, and than three times the slowest that came back, hangs.
HANG_SECONDS = 5.0
LAST_TRIES = 3
BATCH = 500
# After as many records in a row that were refused for one reason, it is not the records that are wrong.
MOST_REFUSED = 3

_left_behind: weakref.WeakSet[Delivery] = weakref.WeakSet()


class Delivery:
    """Delivery of each record of a journal to one logger, once and in order.

    The thread looks at the journal's size a few times a second, so that logging costs the
    loop nothing more. A logger that raises is reported once an outage and tried again, later and later;
    a record that it refuses as such is left out after three tries, unless those before were refused alike. In a
    forked child a delivery does nothing.

    Args:
        logger: Takes ``log_metrics(values, step)``, or ``log_records(records, unsure)``.
        journal: What is sent.
        start: Byte offset of the first record to send. None goes on behind what the logger is
            known to have, even where the run was resumed since and its records are made anew.
        forgot: Whether the logger has itself forgotten what was abandoned when the run was resumed.
        inline: Whether records are sent by the one who logs, and no thread is started.
        number: The logger's number among those that read this journal; found by the logger's run if None.
        clock: Returns the step that the run is at.
        ended: Called once when nothing more will be sent, also where that is long after `stop`.
        late: What opens a logger that was not open in time; it is waited for and, if it failed, made up for.

    Attributes:
        acknowledged: Byte offset behind the last record that the logger has for good.
        trouble: What went wrong when it was closed, or an empty string.
    """

    def __init__(
        self,
        logger: Any,
        journal: Journal,
        start: int | None = 0,
        forgot: bool = False,
        inline: bool = False,
        number: int | None = None,
        clock: Callable[[], int] = int,
        ended: Callable[[], Any] | None = None,
        late: Thread | None = None,
    ) -> None:
        self.logger, self.journal, self.inline = logger, journal, inline
        self._clock, self._ended, self._who = clock, ended, type(logger).__name__
        number = number_of(journal, logger) if number is None else number
        self._ack = ack = Acknowledgement(journal, number)
        self.description = Description(number, None, self._who)
        knows_all = ack.found and getattr(logger, "knows_all", False) is True
        self._had: Parts = () if start is not None or knows_all else without(ack.has, ack.gone)
        self._gone = journal.abandoned if forgot else without(ack.gone, journal.chain)
        left = without(journal.abandoned, self._gone)
        self._sent = self.acknowledged = place_in(journal.chain, self._had) if start is None else start
        # What a process that died may have sent beyond its last acknowledgement.
        self._unsure_below = journal.offset if ack.found else 0
        forget = ability(logger, "forget") if start is None and ack.found else None
        has_some = self._sent > min((begin for begin, _ in journal.chain), default=0)
        self._forget = partial(forget, step=clock() if left else None) if forget and (has_some or left) else None
        # What is made anew as it was is the same record, with the same wall time.
        before = list(journal.read(parts=left)) if start is None else []
        self._has_times = {record.time for record in before if not forget and holds(self._had, record.end)}
        self._unsure_times = {record.time for record in before if ack.found}
        batches = takes_records(logger)
        self._takes: Any = logger if batches else OneByOne(logger)
        self._batch = BATCH if batches else 1
        # A save that does nothing: what the logger took, it has.
        save = getattr(logger, "save", None)
        self._keeps_at_once = save is None or getattr(save, "__func__", None) is Logger.save
        self._unsure = self._calls_failing = False
        self._unsaved = 0
        self._late, self._failing = late, late is not None  # reported by whoever could not open it
        self._calls = Calls(lambda: self._calling(patient=True), lambda text: report(f"{self._who}: {text}"))
        self._tries = self._attempts = self._taken = self._waited = self._refused = self._left_out = 0
        self._last_refusal = self.trouble = ""
        self._wake, self._news = threading.Event(), threading.Condition()
        self._retry, self._retry_at, self._outage_at = FIRST_RETRY_SECONDS, 0.0, time.monotonic()
        self._busy: tuple[float, bool] | None = None  # since when a call is out, and whether it may take its time
        self._slowest = 0.0
        self._caller: int | None = None  # the thread that is in a call of the logger
        self._progress_at = time.monotonic()
        self._status: str | None = None
        self._followed = False  # whether a later delivery feeds the logger: this one hung and was left behind
        self._before: list[Delivery] = []
        self._goes_on = start is None
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None

    @property
    def has(self) -> Parts:
        """Return the parts of the journal that the logger has for good."""
        return union(self._had, up_to(self.journal.chain, self.acknowledged))

    def lacks(self) -> int:
        """Return how many records the logger does not have."""
        return sum(1 for record in self.journal.read(self.acknowledged) if not self._has(record))

    def _has(self, record: Record) -> bool:
        return record.time in self._has_times or holds(self._had, record.end)

    # ------------------------------------------------------------ the two ends

    def start(self, hparams: Any = None) -> None:
        """Begin to send.

        Args:
            hparams: What ``log_hyperparams`` gets before anything else, or None.
        """
        self._ack.keep(self.has, self._gone)
        self.description = Description.of(self.logger, self.description.number)
        if hparams:
            self.description.hparams = plain(hparams)
            self._calls.add(Call(lambda: self._send_hparams(hparams), "hyper-parameters", 0, keeps=True))
        self.description.keep(self.journal)
        with suppress(AttributeError):  # an object with slots is fed all the same
            self.logger._feed = self
        self._before = [other for other in list(_left_behind) if other.logger is self.logger]
        for other in self._before:
            other._followed = True
        fed.add(self)
        if self.inline:
            self.send()
            return
        self._thread = threading.Thread(target=self._work, name=f"lt-{self._who}", daemon=True)
        self._thread.start()

    def _send_hparams(self, hparams: Any) -> None:
        self.logger.log_hyperparams(hparams)
        self._save()
        self.description.hparams = None
        self.description.keep(self.journal)

    def stop(self, status: str, timeout: float | None = None) -> None:
        """Send what is due, close the logger and end its thread.

        A logger that hangs or is away is left behind; what it lacks is reported, with the command that sends it.

        Args:
            status: ``"success"``, ``"failed"`` or ``"interrupted"``.
            timeout: How long to wait at most without any progress, in seconds; the logger's own if None.
        """
        if os.getpid() != self._pid:
            return
        self.description.status = status
        self.description.keep(self.journal)
        if self._thread is None:
            self._send(at_once=True)
            self._close(status)
            self._end()
        else:
            self._status = status
            self._wake.set()
            self._wait(lambda: not self._is_running(), timeout)
            if self._is_running():
                _left_behind.add(self)
        fed.discard(self)
        if getattr(self.logger, "_feed", None) is self:
            self.logger._feed = None
        left = self.lacks()
        waiting = self.journal.write_waiting()
        for message in rest(self.journal, left, waiting, self._left_out, self._calls.left(), self._replay):
            report(f"{self._who}: {message}")
        if not left and self._is_running():
            report(f"{self._who}: did not close in time.")

    def _end(self) -> None:
        """Close what belongs to this delivery alone."""
        self._ack.close()
        if self._ended is not None:
            self._ended()

    def _is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    # ------------------------------------------------------------ what others call

    @property
    def step(self) -> int:
        """Return the step that the run is at."""
        return self._clock()

    def later(self, call: Callable[[], Any], what: str) -> None:
        """Make a call behind all that is due now; what waits is bounded, the oldest goes first."""
        if os.getpid() != self._pid:
            return
        if self._caller == threading.get_ident():  # the logger does what this delivery asked of it
            call()
            return
        if not self.inline:
            self._calls.add(Call(call, what, self.journal.offset))
            return
        try:
            with exclusive(self.logger):
                call()
        except Exception as error:  # a picture is no reason to end a run
            report(f"{self._who}: {what}: left out, {type(error).__name__}: {error}")

    def progressed(self) -> None:
        """Note that a call that is out goes on: it is waited for anew."""
        busy, self._progress_at = self._busy, time.monotonic()
        if busy is not None:
            self._busy = self._progress_at, busy[1]

    def drain(self) -> None:
        """Return when all that is due was taken and saved, or when the tracker is known to be away.

        One who holds the logger's lock would wait for ever: for that one nothing is waited for.
        """
        lock = vars(self.logger).get("_lock") if hasattr(self.logger, "__dict__") else None
        if threading.current_thread() is self._thread or (lock is not None and lock._is_owned()):
            return
        self.later(getattr(self.logger, "save", int), "")
        self.flush()

    def flush(self, timeout: float | None = None) -> bool:
        """Return whether all that is due now was taken, waiting as long as it makes progress within ``timeout``."""
        target, calls = self.journal.offset, self._calls.waiting()
        if os.getpid() != self._pid:
            return False
        if not self._is_running():
            self._send()
        else:
            before = self._attempts

            def is_over() -> bool:
                is_taken = self.acknowledged >= target and not any(call in self._calls for call in calls)
                return is_taken or bool((self._failing or self._calls.trouble) and self._attempts > before)

            self._wake.set()
            self._wait(is_over, timeout)
        return self.acknowledged >= target

    def send(self) -> None:
        """Send what is due from the thread that logs; a tracker that fails is left alone for a while."""
        if not self._failing or time.monotonic() >= self._retry_at:
            self._send()
            self._retry_at = time.monotonic() + self._retry

    def _wait(self, done: Callable[[], bool], timeout: float | None) -> None:
        """Wait until something is done, or the tracker hangs or makes no progress; the logger's own timeout if None."""
        timeout = float(fact(self.logger, "flush_timeout", 30.0)) if timeout is None else timeout
        begun = time.monotonic()
        while not done():
            now, busy = time.monotonic(), self._busy
            hangs = busy is not None and not busy[1] and now - busy[0] >= max(HANG_SECONDS, 3 * self._slowest)
            if hangs or now - max(begun, self._progress_at) >= timeout:
                return
            with self._news:
                self._news.wait(min(0.05, timeout))

    # ------------------------------------------------------------ the thread

    def _work(self) -> None:
        try:
            self._deliver()
        finally:
            self._end()

    def _await_those_before(self) -> None:
        """Wait for calls that earlier deliveries left hanging: what they brought is not sent again."""
        for other in self._before:
            self._busy = time.monotonic(), False
            if other._thread is not None:
                other._thread.join()
            self._busy = None
            if self._goes_on and other.journal is self.journal:
                self._had = union(self._had, other.has)
                self._sent = self.acknowledged = max(self.acknowledged, place_in(self.journal.chain, self._had))

    def _open(self) -> None:
        """Open the logger, where that has failed or is still tried."""
        if self._late is None:
            return
        self._busy = time.monotonic(), False
        self._late.join()
        with self._calling():
            getattr(self.logger, "experiment", None)
        self._late = None

    def _deliver(self) -> None:
        self._await_those_before()
        tries = 0
        while os.getpid() == self._pid and not self._followed:
            status = self._status
            was_away = self._failing and time.monotonic() - self._outage_at > HANG_SECONDS
            sent = self._send(at_once=status is not None)
            if status is not None and not self._followed:
                tries += 1
                # One more try is enough for a tracker that was away long before the end came.
                if sent or was_away or tries >= LAST_TRIES:
                    self._close(status)
                    return
            pause = self._retry if status is None else FIRST_RETRY_SECONDS
            self._wake.wait(pause if self._failing else POLL_SECONDS)
            self._wake.clear()

    def _send(self, at_once: bool = False) -> bool:
        """Send what is there; return False if the logger did not take all of it."""
        error = None
        done = self._failing or self._calls.make(0, at_once)  # hyper-parameters first
        try:
            self._open()
            self._send_records()
        except Exception as caught:
            error, self._unsure, done = caught, True, False
            if getattr(error, "lost_all", False):  # what the logger had is gone: all of it comes again
                self._had, self._has_times, self._gone, self._forget = (), set(), self.journal.abandoned, None
                self._sent = self.acknowledged = 0
                self._unsure_below = self.journal.offset
            self._fails(error)
        else:
            self._works()
            done = self._calls.make(self.acknowledged, at_once)
            self._report_calls()
        with self._news:
            self._attempts += 1
            self._news.notify_all()
        return done

    def _send_records(self) -> None:
        """Send the records that are due and not taken, and make the logger save them."""
        if self._forget is not None:
            with self._calling():
                self._forget(list(self.journal.read(parts=without(self.journal.abandoned, self._gone))))
            self._forget, self._gone = None, self.journal.abandoned
            self._had = without(self._had, self._gone)
            self._ack.keep(self.has, self._gone)
        try:
            while self._sent < (end := self.journal.offset) and not self._followed:
                batch = list(islice(self.journal.read(self._sent), self._batch))
                if not batch:  # a segment in which nothing was logged yet, or what cannot be read
                    self._sent = end
                    break
                self._take(batch)
        finally:  # what it took before it failed is not to come again
            if self._unsaved:
                self._save()
        if self.acknowledged != self._sent:  # all that came was there
            self._acknowledge()

    def _report_calls(self) -> None:
        """Report once an outage that something other than records is not taken."""
        trouble, was_failing = self._calls.trouble, self._calls_failing
        self._calls_failing = bool(trouble)
        if trouble and not was_failing:
            report(f"{self._who}: {trouble}. It is tried again.")

    def _take(self, batch: list[Record]) -> None:
        """Give the logger some records."""
        fresh = [record for record in batch if not self._has(record)]
        count = len(fresh)
        try:
            if fresh:
                self._give(fresh)
                self._refused = 0
        except Exception as error:
            if not is_refusal(error):
                raise
            for record in fresh:  # one of them is at fault: the others must not suffer
                self._take_one(record)
            count = 0
        self._took(batch[-1], count)

    def _give(self, records: list[Record]) -> None:
        doubtful = any(record.end <= self._unsure_below or record.time in self._unsure_times for record in records)
        with self._calling():
            self._takes.log_records(records, unsure=self._unsure or doubtful)
        self._unsure = False

    def _take_one(self, record: Record) -> None:
        """Give the logger a record; leave it out when it was refused a few times.

        Raises:
            Exception: The refusal, if the records before were refused alike: then the tracker is at fault.
        """
        while True:
            try:
                self._unsure = True  # it may be part of what was taken before the refusal
                self._give([record])
                self._refused = 0
            except Exception as error:
                if not is_refusal(error):
                    raise
                self._tries += 1
                if self._tries < LAST_TRIES:
                    time.sleep(min(FIRST_RETRY_SECONDS, 0.1))
                    continue
                self._tries = 0
                self._leave_out(record, error)
            self._took(record, 1)
            return

    def _leave_out(self, record: Record, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        same, self._last_refusal = reason == self._last_refusal, reason
        if same and self._refused >= MOST_REFUSED:
            raise error
        self._left_out += 1
        self._refused = self._refused + 1 if same else 1
        if not same:
            what = f"step {record.step} ({', '.join(record.values)})"
            report(f"{self._who}: refused {what} with {reason}. More of the kind are not reported.")

    def _took(self, record: Record, count: int) -> None:
        """Note that the logger took everything up to a record."""
        self._tries, self._retry = 0, FIRST_RETRY_SECONDS  # it is there, if not all the time
        self._sent, self._progress_at = record.end, time.monotonic()
        self._unsaved, self._taken = self._unsaved + count, self._taken + count
        if self._keeps_at_once:
            self._acknowledge()
        elif self._unsaved >= BATCH:
            self._save()

    def _save(self) -> None:
        """Make the logger write what it holds, and acknowledge all that it took."""
        save = getattr(self.logger, "save", None)
        try:
            if save is not None:
                with self._calling():
                    save()
        except Exception:  # what was not saved comes again: the logger recognises what it has of that
            self._sent, self._unsaved = self.acknowledged, 0
            raise
        self._acknowledge()

    def _acknowledge(self) -> None:
        self._unsaved = 0
        self.acknowledged = self._sent
        self._ack.keep(self.has, self._gone)

    @contextmanager
    def _calling(self, patient: bool = False) -> Iterator[None]:
        """Hold the logger's lock around a call of it, and note how long the call is out."""
        with exclusive(self.logger):
            begun = time.monotonic()
            self._busy, self._caller = (begun, patient), threading.get_ident()
            try:
                yield
                if not patient:
                    self._slowest = max(self._slowest, time.monotonic() - begun)
                self._progress_at = time.monotonic()
            finally:
                self._busy = self._caller = None

    # ------------------------------------------------------------ outages

    def _fails(self, error: Exception) -> None:
        pause = self._retry * (0.8 + 0.4 * _chance.random())  # a thousand runs do not come back at one moment
        self._retry = min(2 * pause, LAST_RETRY_SECONDS) if self._failing else FIRST_RETRY_SECONDS
        if not self._failing:
            self._failing, self._outage_at = True, time.monotonic()
            self._waited = self._taken
            report(
                f"{self._who}: logging failed at {time.strftime('%H:%M:%S')} with {type(error).__name__}: {error}. "
                f"Training goes on; the metrics wait in {self.journal.path or 'memory'}."
            )

    def _works(self) -> None:
        if self._failing:
            self._failing, self._retry = False, FIRST_RETRY_SECONDS
            seconds, count = time.monotonic() - self._outage_at, self._taken - self._waited
            info(f"{self._who}: works again after {seconds:.0f} s; the {count} records that had waited were sent.")

    @property
    def _replay(self) -> str:
        """Return the command that sends what is left, or nothing where there is none."""
        path = self.journal.path
        return f"python -m lt_core.journal replay {path.parent}" if path and self.description.plugin else ""

    def _close(self, status: str) -> None:
        close = ability(self.logger, "finish") or getattr(self.logger, "finalize", None)
        try:
            if close is not None:
                with self._calling(patient=True):
                    close(status)
        except Exception as error:
            self.trouble = f"closing failed with {type(error).__name__}: {error}"
            fix = f" Close it with: {self._replay}" if self._replay else ""
            report(f"{self._who}: {self.trouble}.{fix}")


_chance = random.Random()  # not the process's: training draws from that
