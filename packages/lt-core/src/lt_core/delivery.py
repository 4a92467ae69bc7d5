"""Feed a logger from the journal, in a thread of its own: the loop never waits for a tracker."""

from __future__ import annotations

import json
import os
import threading
import time
import weakref
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from lt_core.journal import Journal, Record
from lt_core.notices import warn

__all__ = ["Delivery"]

POLL_SECONDS = 0.2
SAVE_SECONDS = 1.0
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0
LAST_TRIES = 3
# Of these errors the record is the cause, so that trying again for ever would hold up all that follow.
REFUSALS = (AttributeError, KeyError, TypeError, ValueError)

_alive: weakref.WeakSet[Delivery] = weakref.WeakSet()


class Delivery:
    """Send each record of a journal to one logger, once and in order.

    The thread looks at the journal's size a few times a second, so that logging costs the
    loop nothing more. A logger that raises is told of once and tried again, later and later;
    a record that it refuses as such is left out after three tries. In a forked child a
    delivery does nothing.

    How far it came is kept in ``<journal>.<n>.ack``, n being the logger's number among those
    that read this journal.

    Args:
        logger: Takes ``log_metrics(values, step)``.
        journal: What is sent.
        start: Byte offset of the first record to send. None goes on behind what the logger is
            known to have, even where the journal was cut since and its records are made anew.
        has_at_most: How many records the logger can have, if it forgot later ones itself.

    Attributes:
        acknowledged: Byte offset behind the last record that the logger took.
    """

    def __init__(self, logger: Any, journal: Journal, start: int | None = 0, has_at_most: int | None = None) -> None:
        self.logger, self.journal = logger, journal
        self._ack = None if journal.path is None else f"{journal.path}.{journal.number(logger)}.ack"
        self._has = self._known() if start is None else 0
        if has_at_most is not None:
            self._has = min(self._has, has_at_most)
        self.acknowledged = self._place() if start is None else start
        self._kept = -1
        self._wake = threading.Event()
        self._idle = threading.Condition()
        self._attempts = self._refusals = 0
        self._failing = False
        self._unsaved = False
        self._saved_at = 0.0
        self._retry = FIRST_RETRY_SECONDS
        self._status: str | None = None
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None

    def _known(self) -> int:
        """Return how many records the logger is known to have; none if they were another journal's."""
        try:
            with open(str(self._ack), encoding="utf-8") as file:
                kept = json.load(file)
            # An empty journal is any run's: its identity tells nothing.
            if kept["journal"] and kept["journal"] in (self.journal.identity(), self.journal.former):
                return int(kept["sequence"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return 0

    def _place(self) -> int:
        """Return where the records end that the logger has.

        The offset that was acknowledged may lie inside a record by now: those that were made anew
        after a cut have the same numbers, but not the same lengths.
        """
        place = 0
        for record in self.journal.read():
            if record.sequence >= self._has:
                break
            place = record.end
        return place

    def start(self) -> None:
        """Begin to send."""
        self._thread = threading.Thread(target=self._work, name=f"lt-{type(self.logger).__name__}", daemon=True)
        _alive.add(self)
        self._thread.start()

    def _work(self) -> None:
        tries = 0
        while os.getpid() == self._pid:
            status = self._status
            sent = self._send()
            if status is not None:
                tries += 1
                if sent or tries >= LAST_TRIES:
                    return self._close(status)
            self._wake.wait(POLL_SECONDS if sent else self._retry if status is None else FIRST_RETRY_SECONDS)
            self._wake.clear()
        return None

    def _send(self) -> bool:
        """Send what is there; return False if the logger did not take all of it."""
        try:
            if self.acknowledged < self.journal.offset:
                for record in self.journal.read(self.acknowledged):
                    self._send_one(record)
            if self._unsaved and (self._status is not None or time.monotonic() - self._saved_at >= SAVE_SECONDS):
                self._save()
        except Exception as error:
            self._fails(error)
            sent = False
        else:
            sent = True
            if self._failing:
                self._failing, self._retry = False, FIRST_RETRY_SECONDS
                _tell(f"{self._who}: works again; what had waited was sent.")
        self._keep()
        with self._idle:
            self._attempts += 1
            self._idle.notify_all()
        return sent

    def _send_one(self, record: Record) -> None:
        if record.sequence >= self._has:
            try:
                with _exclusive(self.logger):
                    self.logger.log_metrics(dict(record.values), record.step)
            except REFUSALS as error:
                self._refusals += 1
                if self._refusals < LAST_TRIES or isinstance(error, OSError):
                    raise
                names = ", ".join(record.values)
                _tell(f"{self._who}: refused step {record.step} ({names}) with {type(error).__name__}: {error}")
            self._has = record.sequence + 1
            self._unsaved = True
        self._refusals = 0
        self.acknowledged = record.end

    def _save(self) -> None:
        save = getattr(self.logger, "save", None)
        if save is not None:
            with _exclusive(self.logger):
                save()
        self._unsaved, self._saved_at = False, time.monotonic()

    def _keep(self) -> None:
        """Write down how far the logger is, where the journal has a place."""
        if self._ack is None or self._kept == self.acknowledged:
            return
        state = {"offset": self.acknowledged, "sequence": self._has, "journal": self.journal.identity()}
        with suppress(OSError):  # at worst some records are sent twice after a crash
            with open(f"{self._ack}.tmp", "w", encoding="utf-8") as file:
                json.dump(state, file)
            os.replace(f"{self._ack}.tmp", self._ack)
            self._kept = self.acknowledged

    def _fails(self, error: Exception) -> None:
        refused = isinstance(error, REFUSALS) and not isinstance(error, OSError)
        self._retry = FIRST_RETRY_SECONDS if refused else min(self._retry * 2, LAST_RETRY_SECONDS)
        if not self._failing:
            self._failing = True
            _tell(
                f"{self._who}: logging failed with {type(error).__name__}: {error}. "
                f"Training goes on; the metrics wait in {self.journal.path or 'memory'}."
            )

    @property
    def _who(self) -> str:
        return type(self.logger).__name__

    def flush(self, timeout: float = 30.0) -> bool:
        """Return whether all that is due now was taken within ``timeout`` seconds."""
        target = self.journal.offset
        if os.getpid() != self._pid:
            return False
        if self._thread is None or not self._thread.is_alive():
            return self._send() and self.acknowledged >= target
        before = self._attempts
        self._wake.set()
        with self._idle:
            self._idle.wait_for(
                lambda: self.acknowledged >= target or (self._failing and self._attempts > before), timeout
            )
        return self.acknowledged >= target

    def stop(self, status: str, timeout: float = 30.0) -> None:
        """Send what is due, close the logger and end its thread.

        A logger that hangs is left behind after ``timeout``; its thread ends with the process.

        Args:
            status: ``"success"``, ``"failed"`` or ``"interrupted"``.
            timeout: How long to wait at most, in seconds.
        """
        if os.getpid() != self._pid:
            return
        if self._thread is None:
            self._send()
            self._close(status)
        else:
            self._status = status
            self._wake.set()
            self._thread.join(timeout)
        _alive.discard(self)
        left = sum(1 for _ in self.journal.read(self.acknowledged))
        if left:
            place = f"they stay in {self.journal.path}" if self.journal.path is not None else "they are lost"
            _tell(f"{self._who}: {left} records of metrics were not taken; {place}.")
        elif self._thread is not None and self._thread.is_alive():
            _tell(f"{self._who}: did not close within {timeout:g} seconds.")

    def _close(self, status: str) -> None:
        close = getattr(self.logger, "finish", None) or getattr(self.logger, "finalize", None)
        try:
            if close is not None:
                close(status)
        except Exception as error:
            _tell(f"{self._who}: closing failed with {type(error).__name__}: {error}")


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
