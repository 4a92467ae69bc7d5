"""Feed a logger from the journal, in a thread of its own: the loop never waits for a tracker."""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from lt_core.acknowledgement import Acknowledgement, Description, plain_json
from lt_core.journal import Journal, Record
from lt_core.notices import info, warn
from lt_interface import Logger

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Delivery"]

POLL_SECONDS = 0.2
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0
# A call that is out for longer than this, and than three times the slowest that came back, hangs.
HANG_SECONDS = 5.0
LAST_TRIES = 3
BATCH = 500
MOST_CALLS = 1000
# Of these errors the record is the cause, so that trying again for ever would hold up all that follow.
REFUSALS = (AttributeError, KeyError, TypeError, ValueError)

_alive: weakref.WeakSet[Delivery] = weakref.WeakSet()


@dataclass
class _Call:
    """Be something other than a record that waits for the tracker."""

    call: Callable[[], Any]
    what: str
    mark: int
    tries: int = 0


class Delivery:
    """Send each record of a journal to one logger, once and in order.

    The thread looks at the journal's size a few times a second, so that logging costs the
    loop nothing more. A logger that raises is told of once an outage and tried again, later and later;
    a record that it refuses as such is left out after three tries. In a forked child a
    delivery does nothing.

    Args:
        logger: Takes ``log_metrics(values, step)``, or ``log_records(records, unsure)``.
        journal: What is sent.
        start: Byte offset of the first record to send. None goes on behind what the logger is
            known to have, even where the journal was cut since and its records are made anew.
        has_at_most: How many records the logger can have, if it forgot later ones itself.
        inline: Whether records are sent by the one who logs, and no thread is started.
        number: The logger's number among those that read this journal; the journal counts them if None.
        clock: Tells the step that the run is at.

    Attributes:
        acknowledged: Byte offset behind the last record that the logger has for good.
    """

    def __init__(
        self,
        logger: Any,
        journal: Journal,
        start: int | None = 0,
        has_at_most: int | None = None,
        inline: bool = False,
        number: int | None = None,
        clock: Callable[[], int] = int,
    ) -> None:
        self.logger, self.journal, self.inline, self._clock = logger, journal, inline, clock
        number = journal.number(logger) if number is None else number
        self._ack = Acknowledgement(journal, number)
        self.description = Description(number, None, type(logger).__name__)
        knows_all = self._ack.found and getattr(logger, "knows_all", False)
        self._has = 0 if start is not None or knows_all else self._ack.sequence
        if has_at_most is not None:
            self._has = min(self._has, has_at_most)
        self._has_for_good = self._has
        # What a process that died may have sent beyond its last acknowledgement.
        self._unsure_below = max(journal.highest, self._ack.sequence) if self._ack.found else 0
        self._sent = self.acknowledged = self._place() if start is None else start
        # A save that does nothing: what the logger took, it has.
        self._keeps_at_once = getattr(type(logger), "save", Logger.save) is Logger.save
        self._batches = callable(getattr(logger, "log_records", None))
        self._unsure = self._failing = self._unsaved = False
        self._calls: deque[_Call] = deque()
        self._lost_calls = self._refusals = self._attempts = self._waited = 0
        self._wake, self._news = threading.Event(), threading.Condition()
        self._retry, self._retry_at, self._outage_at = FIRST_RETRY_SECONDS, 0.0, 0.0
        self._busy_since: float | None = None
        self._slowest = 0.0
        self._progress_at = time.monotonic()
        self._status: str | None = None
        self._left = False
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None

    def _place(self) -> int:
        """Return where the records end that the logger has.

        The offset that was acknowledged may lie inside a record by now: those that were made anew
        after a cut have the same numbers, but not always the same lengths.
        """
        place = 0
        for record in self.journal.read():
            if record.sequence >= self._has:
                break
            place = record.end
        return place

    # ------------------------------------------------------------ the two ends

    def start(self, hparams: Any = None) -> None:
        """Begin to send.

        Args:
            hparams: What ``log_hyperparams`` gets before anything else, or None.
        """
        self._ack.keep(min(self._has, self._ack.sequence))
        self.description = Description.of(self.logger, self.description.number)
        if hparams:
            self.description.hparams = plain_json(hparams)
            self._calls.append(_Call(lambda: self._send_hparams(hparams), "hyper-parameters", 0))
        self.description.keep(self.journal)
        with suppress(AttributeError):  # an object with slots is fed all the same
            self.logger._feed = self
        _alive.add(self)
        if self.inline:
            self.send()
            return
        self._thread = threading.Thread(target=self._work, name=f"lt-{type(self.logger).__name__}", daemon=True)
        self._thread.start()

    def _send_hparams(self, hparams: Any) -> None:
        self.logger.log_hyperparams(hparams)
        self._save()
        self.description.hparams = None
        self.description.keep(self.journal)

    def stop(self, status: str, timeout: float | None = None) -> None:
        """Send what is due, close the logger and end its thread.

        A logger that hangs or is away is left behind; what it lacks is told, with the command that sends it.

        Args:
            status: ``"success"``, ``"failed"`` or ``"interrupted"``.
            timeout: How long to wait at most without any progress, in seconds; the logger's own if None.
        """
        if os.getpid() != self._pid:
            return
        self.description.status = status
        self.description.keep(self.journal)
        if self._thread is None:
            self._send()
            self._close(status)
        else:
            self._status = status
            self._wake.set()
            self._wait(lambda: not self._is_running(), self._patience(timeout))
            self._left = True
        _alive.discard(self)
        if getattr(self.logger, "_feed", None) is self:
            self.logger._feed = None
        self._tell_the_rest()

    def _tell_the_rest(self) -> None:
        """Say what the logger did not take, and how to send it."""
        left = sum(1 for _ in self.journal.read(self.acknowledged))
        calls = ", ".join(dict.fromkeys(c.what for c in list(self._calls)))
        if calls:
            _tell(f"{self._who}: not sent: {calls}.")
        if left:
            fix = "they are lost"
            if self.journal.path is not None:
                fix = f"they stay in {self.journal.path}"
                if self.description.plugin:
                    fix += f". Send them with: python -m lt_core.journal replay {self.journal.path.parent}"
            _tell(f"{self._who}: {left} records of metrics were not taken; {fix}")
        elif self._is_running():
            _tell(f"{self._who}: did not close in time.")
        else:
            self._ack.close()

    def _is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _is_followed(self) -> bool:
        """Return whether a later delivery feeds the logger by now: this one hung and was left behind."""
        return self._left and getattr(self.logger, "_feed", None) is not None

    # ------------------------------------------------------------ what others call

    @property
    def step(self) -> int:
        """Return the step that the run is at."""
        return self._clock()

    def later(self, call: Callable[[], Any], what: str) -> None:
        """Make a call behind all that is due now; what waits is bounded, the oldest goes first."""
        if os.getpid() != self._pid:
            return
        if self.inline:
            with _exclusive(self.logger):
                call()
            return
        if len(self._calls) >= MOST_CALLS:
            dropped = self._calls.popleft()
            if not self._lost_calls:
                _tell(f"{self._who}: more than {MOST_CALLS} calls wait for it; the oldest are left out: {dropped.what}")
            self._lost_calls += 1
        self._calls.append(_Call(call, what, self.journal.offset))

    def drain(self) -> None:
        """Return when all that is due was taken, or when the tracker is known to be away."""
        if threading.current_thread() is not self._thread:
            self.flush()

    def flush(self, timeout: float | None = None) -> bool:
        """Return whether all that is due now was taken, waiting as long as it makes progress within ``timeout``."""
        target, calls = self.journal.offset, list(self._calls)
        if os.getpid() != self._pid:
            return False
        if not self._is_running():
            self._send()
        else:
            before = self._attempts
            self._wake.set()
            self._wait(
                lambda: (
                    (self.acknowledged >= target and not any(c in self._calls for c in calls))
                    or (self._failing and self._attempts > before)
                ),
                self._patience(timeout),
            )
        return self.acknowledged >= target

    def send(self) -> None:
        """Send what is due from the thread that logs; a tracker that fails is left alone for a while."""
        if not self._failing or time.monotonic() >= self._retry_at:
            self._send()
            self._retry_at = time.monotonic() + self._retry

    def _patience(self, timeout: float | None) -> float:
        return float(getattr(self.logger, "flush_timeout", 30.0)) if timeout is None else timeout

    def _wait(self, done: Callable[[], bool], timeout: float) -> None:
        """Wait until something is done, or nothing more is to be hoped for."""
        begun = time.monotonic()
        while not done():
            now, busy = time.monotonic(), self._busy_since
            hangs = busy is not None and now - busy >= max(HANG_SECONDS, 3 * self._slowest)
            if hangs or now - max(begun, self._progress_at) >= timeout:
                return
            with self._news:
                self._news.wait(min(0.05, timeout))

    # ------------------------------------------------------------ the thread

    def _work(self) -> None:
        tries = 0
        while os.getpid() == self._pid and not self._is_followed():
            status = self._status
            was_away = self._failing and time.monotonic() - self._outage_at > HANG_SECONDS
            sent = self._send()
            if status is not None:
                tries += 1
                # One more try is enough for a tracker that was away long before the end came.
                if sent or was_away or tries >= LAST_TRIES:
                    return self._close(status)
            self._wake.wait(POLL_SECONDS if sent else self._retry if status is None else FIRST_RETRY_SECONDS)
            self._wake.clear()
        return None

    def _send(self) -> bool:
        """Send what is there; return False if the logger did not take all of it."""
        error = None
        try:
            self._make_calls(before_records=True)
            while self._sent < self.journal.offset and not self._is_followed():
                batch = list(islice(self.journal.read(self._sent), BATCH))
                if not batch:
                    break
                self._take(batch)
            if self._unsaved:
                self._save()
            self._make_calls()
        except Exception as caught:
            error = caught
            self._unsure = True
            if getattr(error, "lost_all", False):  # what the logger had is gone: all of it comes again
                self._sent = self.acknowledged = self._has = self._has_for_good = 0
                self._unsure_below = self.journal.highest
            self._fails(error)
        else:
            self._works()
        with self._news:
            self._attempts += 1
            self._news.notify_all()
        return error is None

    def _take(self, batch: list[Record]) -> None:
        """Give the logger some records, and acknowledge those that it has for good."""
        fresh = [record for record in batch if record.sequence >= self._has]
        if not fresh:
            self._acknowledge(batch[-1])
        elif not self._batches:
            try:
                for record in batch:
                    if record.sequence >= self._has:
                        self._take_one(record)
                    self._took(record, save=False)
            finally:  # what it took before it failed is not to come again
                if self._unsaved:
                    self._save()
        else:
            try:
                self._give(fresh)
            except REFUSALS as error:
                if isinstance(error, OSError):
                    raise
                for record in fresh:  # one of them is at fault: the others must not suffer
                    self._take_one(record)
                    self._took(record)
            else:
                self._took(batch[-1])

    def _give(self, records: list[Record]) -> None:
        unsure = self._unsure or records[0].sequence < self._unsure_below
        with self._calling():
            self.logger.log_records(records, unsure=unsure)
        self._unsure = False

    def _take_one(self, record: Record) -> None:
        """Give the logger a record; leave it out when it was refused a few times."""
        while True:
            try:
                if self._batches:
                    self._unsure = True  # it may be part of what was taken before the refusal
                    return self._give([record])
                with self._calling():
                    return self.logger.log_metrics(dict(record.values), record.step)  # type: ignore[no-any-return]
            except REFUSALS as error:
                if isinstance(error, OSError):
                    raise
                self._refusals += 1
                if self._refusals >= LAST_TRIES:
                    self._refusals = 0
                    names = ", ".join(record.values)
                    _tell(f"{self._who}: refused step {record.step} ({names}) with {type(error).__name__}: {error}")
                    return None
                time.sleep(min(FIRST_RETRY_SECONDS, 0.1))

    def _took(self, record: Record, save: bool = True) -> None:
        """Note that the logger took everything up to a record."""
        self._refusals = 0
        self._has, self._sent, self._unsaved = max(self._has, record.sequence + 1), record.end, True
        self._progress_at = time.monotonic()
        if self._keeps_at_once:
            self._acknowledge(record)
        elif save:
            self._save()

    def _save(self) -> None:
        """Let the logger write what it holds, and acknowledge all that it took."""
        save = getattr(self.logger, "save", None)
        try:
            if save is not None:
                with self._calling():
                    save()
        except Exception:
            if self._batches:  # what was not saved comes again: the logger knows what it has of that
                self._sent, self._has, self._unsaved = self.acknowledged, self._has_for_good, False
            raise
        self._unsaved = False
        self.acknowledged, self._has_for_good = self._sent, self._has
        self._ack.keep(self._has)

    def _acknowledge(self, record: Record) -> None:
        self._unsaved = False
        self._sent = self.acknowledged = record.end
        self._has = self._has_for_good = max(self._has, record.sequence + 1)
        self._ack.keep(self._has)

    def _make_calls(self, before_records: bool = False) -> None:
        """Make the calls whose turn it is; one that fails holds up no record."""
        place = 0 if before_records else self.acknowledged
        for call in [c for c in list(self._calls) if c.mark <= place]:
            try:
                with self._calling():
                    call.call()
            except Exception as error:
                call.tries += 1
                refused = isinstance(error, REFUSALS) and not isinstance(error, OSError)
                if refused or (call.tries >= LAST_TRIES and not before_records and not self._failing):
                    _tell(f"{self._who}: {call.what}: left out, {type(error).__name__}: {error}")
                elif before_records:
                    continue
                else:
                    raise
            else:
                self._progress_at = time.monotonic()
            with suppress(ValueError):
                self._calls.remove(call)

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Hold the logger's lock around a call of it, and note how long the call is out."""
        with _exclusive(self.logger):
            begun = self._busy_since = time.monotonic()
            try:
                yield
                self._slowest = max(self._slowest, time.monotonic() - begun)
            finally:
                self._busy_since = None

    # ------------------------------------------------------------ outages

    def _fails(self, error: Exception) -> None:
        pause = self._retry * (0.8 + 0.4 * _chance.random())  # a thousand runs do not come back at one moment
        self._retry = min(2 * pause, LAST_RETRY_SECONDS) if self._failing else FIRST_RETRY_SECONDS
        if not self._failing:
            self._failing, self._outage_at = True, time.monotonic()
            self._waited = self._has
            _tell(
                f"{self._who}: logging failed at {time.strftime('%H:%M:%S')} with {type(error).__name__}: {error}. "
                f"Training goes on; the metrics wait in {self.journal.path or 'memory'}."
            )

    def _works(self) -> None:
        if self._failing:
            self._failing, self._retry = False, FIRST_RETRY_SECONDS
            seconds, count = time.monotonic() - self._outage_at, self._has - self._waited
            info(f"{self._who}: works again after {seconds:.0f} s; the {count} records that had waited were sent.")

    @property
    def _who(self) -> str:
        return type(self.logger).__name__

    def _close(self, status: str) -> None:
        close = getattr(self.logger, "finish", None) or getattr(self.logger, "finalize", None)
        try:
            if close is not None:
                self._busy_since = time.monotonic()
                close(status)
        except Exception as error:
            _tell(f"{self._who}: closing failed with {type(error).__name__}: {error}")
        finally:
            self._busy_since = None


_chance = random.Random()  # not the process's: training draws from that


def _exclusive(logger: Any) -> AbstractContextManager[Any]:
    found: AbstractContextManager[Any] = logger.exclusive() if hasattr(logger, "exclusive") else nullcontext()
    return found


def _tell(message: str) -> None:
    with suppress(Warning):  # where warnings are errors, one must not end the thread
        warn(message)


def _after_fork_in_child() -> None:
    # Nothing waits before a fork: a tracker that hangs would hold up every DataLoader worker. So the
    # child finds locks as they were, perhaps held by a thread that it does not have.
    for delivery in list(_alive):
        delivery._thread = None
        if "_lock" in vars(delivery.logger):
            delivery.logger._lock = threading.RLock()
    _alive.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
