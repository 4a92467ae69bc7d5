"""Hold what waits for a tracker beside records: pictures, checkpoints, hyper-parameters."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from lt_core.notices import warn
from lt_interface.abilities import ability
from lt_interface.errors import LTError

__all__ = ["Call", "Calls", "exclusive", "fed", "is_refusal", "report"]

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0
MOST_CALLS = 1000
MOST_TRIES = 10
# The deliveries of this process whose threads may run.
fed: weakref.WeakSet[Any] = weakref.WeakSet()
_REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


def is_refusal(error: Exception) -> bool:
    """Return whether what was sent is the cause of an error, so that it would be refused again."""
    return isinstance(error, _REFUSALS) and not isinstance(error, (OSError, LTError))


def exclusive(logger: Any) -> AbstractContextManager[Any]:
    """Return what holds a logger's lock, where it has one."""
    hold = ability(logger, "exclusive")
    return nullcontext() if hold is None else hold()


def report(message: str) -> None:
    """Warn, where a warning that is an error must end neither a thread nor what else is to be sent."""
    with suppress(Warning):
        warn(message)


@dataclass(eq=False)
class Call:
    """Something that waits for the tracker.

    Attributes:
        call: What to do.
        what: What it sends, for messages; empty where nobody needs to know.
        mark: Byte offset in the journal that the logger must have reached.
        keeps: Whether it is never left out, and stays in front.
        tries: How often it failed.
    """

    call: Callable[[], Any]
    what: str
    mark: int
    keeps: bool = False
    tries: int = 0


class Calls:
    """Calls that are made when their turn comes; one that fails holds up neither records nor the other calls.

    It goes behind them, and all wait for a while, longer each time.

    Args:
        calling: Wraps each call.
        report: Takes what a user should know.

    Attributes:
        lost: How many were left out for want of room.
        trouble: The first that failed, and why, while any does; else an empty string.
    """

    def __init__(self, calling: Callable[[], AbstractContextManager[Any]], report: Callable[[str], None]) -> None:
        self._calling, self._report = calling, report
        self._waiting: deque[Call] = deque()
        self._active: Call | None = None
        self._retry, self._retry_at = FIRST_RETRY_SECONDS, 0.0
        self.lost = 0
        self.trouble = ""

    def add(self, call: Call) -> None:
        """Add a call that waits; of too many the oldest is left out."""
        if call.keeps:
            self._waiting.appendleft(call)
            return
        if len(self._waiting) >= MOST_CALLS:
            for oldest in list(self._waiting):
                if not oldest.keeps and oldest is not self._active:
                    self._remove(oldest)
                    break
            if not self.lost:
                self._report(f"more than {MOST_CALLS} calls wait for it; the oldest are left out: {oldest.what}")
            self.lost += 1
        self._waiting.append(call)

    def make(self, place: int, at_once: bool = False) -> bool:
        """Make the calls whose turn it is.

        Args:
            place: How far in the journal the logger came.
            at_once: Whether to make them all though one failed a moment ago.

        Returns:
            Whether none of them is left.
        """
        due = [call for call in list(self._waiting) if call.mark <= place]
        if due and (at_once or time.monotonic() >= self._retry_at):
            failed = 0
            for call in due:
                failed += not (self._make(call) or call.keeps)
                if failed > at_once:  # at the end of a run one more is tried
                    break
        if not any(call.mark <= place for call in list(self._waiting)):
            self.trouble, self._retry, self._retry_at = "", FIRST_RETRY_SECONDS, 0.0
            return True
        return False

    def _make(self, call: Call) -> bool:
        self._active = call
        try:
            with self._calling():
                call.call()
        except Exception as error:
            call.tries += 1
            if is_refusal(error) or (call.tries >= MOST_TRIES and not call.keeps):
                self._remove(call)
                self._report(f"{call.what}: left out, {type(error).__name__}: {error}")
                return True
            if not call.keeps and self._remove(call):
                self._waiting.append(call)
            self.trouble = self.trouble or f"{call.what or 'a call'} was not taken, {type(error).__name__}: {error}"
            self._retry_at = time.monotonic() + self._retry
            self._retry = min(2 * self._retry, LAST_RETRY_SECONDS)
            return False
        finally:
            self._active = None
        self._remove(call)
        return True

    def _remove(self, call: Call) -> bool:
        with suppress(ValueError):
            self._waiting.remove(call)
            return True
        return False

    def waiting(self) -> list[Call]:
        """Return the calls that are still to be made."""
        return list(self._waiting)

    def __contains__(self, call: Call) -> bool:
        return call in list(self._waiting)

    def left(self) -> str:
        """Return what was not sent, in words; empty if nothing."""
        names = list(dict.fromkeys(call.what for call in list(self._waiting) if call.what))
        more = [f"and {self.lost} calls before them"] if self.lost else []
        return ", ".join([*names, *more])


def _after_fork_in_child() -> None:
    # Nothing waits before a fork: a tracker that hangs would hold up every DataLoader worker. So the
    # child finds locks as they were, perhaps held by a thread that it does not have.
    for delivery in list(fed):
        delivery._thread = None
        if "_lock" in getattr(delivery.logger, "__dict__", ()):
            delivery.logger._lock = threading.RLock()
    fed.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
