"""Feed a logger from the journal, in a thread of its own: the loop never waits for a tracker."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

from lt_core.journal import Journal
from lt_core.notices import warn

__all__ = ["Delivery"]

POLL_SECONDS = 0.2
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0

_alive: weakref.WeakSet[Delivery] = weakref.WeakSet()


class Delivery:
    """Send each record of a journal to one logger, once and in order.

    The thread looks at the journal's size a few times a second, so that logging costs the
    loop nothing more. A logger that raises is told of once and tried again, later and later.
    In a forked child it does nothing.

    Args:
        logger: Takes ``log_metrics(values, step)``.
        journal: What is sent.
        start: Byte offset of the first record to send.
    """

    def __init__(self, logger: Any, journal: Journal, start: int = 0) -> None:
        self.logger, self.journal, self.acknowledged = logger, journal, start
        self._wake = threading.Event()
        self._idle = threading.Condition()
        self._stopping = False
        self._failing = False
        self._retry = FIRST_RETRY_SECONDS
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to send."""
        self._thread = threading.Thread(target=self._work, name=f"lt-{type(self.logger).__name__}", daemon=True)
        _alive.add(self)
        self._thread.start()

    def _work(self) -> None:
        while not self._stopping and os.getpid() == self._pid:
            sent = self._send()
            with self._idle:
                self._idle.notify_all()
            self._wake.wait(POLL_SECONDS if sent else self._retry)
            self._wake.clear()

    def _send(self) -> bool:
        """Send what is there; return False if the logger refused some of it."""
        if self.acknowledged >= self.journal.offset:
            return True
        try:
            for record in self.journal.read(self.acknowledged):
                with _exclusive(self.logger):
                    self.logger.log_metrics(dict(record.values), record.step)
                self.acknowledged = record.end
        except Exception as error:
            self._fails(error)
            return False
        if self._failing:
            self._failing, self._retry = False, FIRST_RETRY_SECONDS
            warn(f"{type(self.logger).__name__}: works again; what had waited was sent.")
        return True

    def _fails(self, error: Exception) -> None:
        self._retry = min(self._retry * 2, LAST_RETRY_SECONDS)
        if not self._failing:
            self._failing = True
            warn(
                f"{type(self.logger).__name__}: logging failed with {type(error).__name__}: {error}. "
                f"Training goes on; the metrics wait in {self.journal.path or 'memory'}."
            )

    def flush(self, timeout: float = 30.0) -> bool:
        """Return whether all that is due now was taken within ``timeout`` seconds."""
        target = self.journal.offset
        if self._thread is None or not self._thread.is_alive():
            return self._send() and self.acknowledged >= target
        self._wake.set()
        with self._idle:
            self._idle.wait_for(lambda: self.acknowledged >= target or self._failing, timeout)
        return self.acknowledged >= target

    def stop(self, status: str, timeout: float = 30.0) -> None:
        """Send what is due, end the thread and close the logger.

        Args:
            status: ``"success"``, ``"failed"`` or ``"interrupted"``.
            timeout: How long to wait, in seconds.
        """
        done = self.flush(timeout)
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout if done else 1.0)
        _alive.discard(self)
        try:
            _finish(self.logger, status)
        except Exception as error:
            warn(f"{type(self.logger).__name__}: closing failed with {type(error).__name__}: {error}")
        if not done:
            left = self.journal.offset - self.acknowledged
            warn(
                f"{type(self.logger).__name__}: {left} bytes of metrics were not taken; "
                f"they stay in {self.journal.path}."
            )


def _exclusive(logger: Any) -> Any:
    from contextlib import nullcontext

    return logger.exclusive() if hasattr(logger, "exclusive") else nullcontext()


def _finish(logger: Any, status: str) -> None:
    close = getattr(logger, "finish", None) or getattr(logger, "finalize", None)
    if close is not None:
        close(status)


def _before_fork() -> None:
    for delivery in list(_alive):
        lock = getattr(delivery.logger, "_logger_lock", None)
        if lock is not None:
            lock().acquire()


def _after_fork_in_parent() -> None:
    for delivery in list(_alive):
        lock = getattr(delivery.logger, "_logger_lock", None)
        if lock is not None:
            lock().release()


def _after_fork_in_child() -> None:
    for delivery in list(_alive):
        delivery._stopping = True
        delivery._thread = None
        if hasattr(delivery.logger, "_lock"):
            delivery.logger._lock = threading.RLock()
    _alive.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
