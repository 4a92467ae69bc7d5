"""Say where metrics go. A tracker subclasses `Logger` and implements a handful of methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import threading

__all__ = ["Feed", "Logger", "SupportsLogging"]


@runtime_checkable
class SupportsLogging(Protocol):
    """Take metrics and hyper-parameters: all that the core asks of a logger."""

    @property
    def name(self) -> str | None:
        """Return the experiment's name."""
        ...

    @property
    def version(self) -> int | str | None:
        """Return the run's version."""
        ...

    @property
    def directory(self) -> str | None:
        """Return the local folder of this run, or None."""
        ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take values of one step."""
        ...

    def log_hyperparams(self, params: Any) -> None:
        """Take the hyper-parameters."""
        ...

    def flush(self) -> None:
        """Return when all that was taken is written."""
        ...

    def finish(self, status: str) -> None:
        """Close; ``status`` is success, failed or interrupted."""
        ...


class Feed(Protocol):
    """Be what the core attaches to a logger while a run feeds it."""

    @property
    def step(self) -> int:
        """Return the step that the run is at."""
        ...

    def drain(self) -> None:
        """Return when all that is due was taken, or when the tracker is known to be away."""
        ...

    def progressed(self) -> None:
        """Note that a call that is out goes on, so that the end of a run waits for it anew."""
        ...

    def later(self, call: Callable[[], Any], what: str) -> None:
        """Make a call behind all that is due now, where waiting for the tracker holds up nobody."""
        ...


class Logger:
    """Be the base of every tracker's logger.

    The core calls `log_metrics` from one background thread of its own, never two at a
    time, and always inside `exclusive`. A direct call from user code may run at the same
    moment: take ``with logger.exclusive():`` around a group of calls that must stay together.

    Attributes:
        delivery: ``"async"`` for that thread, ``"sync"`` to be called by the loop itself, None for
            what the trainer's ``logger_delivery`` says.
        flush_timeout: How many seconds the end of a run, or `flush`, waits for a tracker that makes no progress.
    """

    delivery: str | None = None
    flush_timeout: float = 30.0
    _feed: Feed | None = None

    @property
    def name(self) -> str | None:
        """Return the experiment's name."""
        return None

    @property
    def version(self) -> int | str | None:
        """Return the run's version."""
        return None

    @property
    def save_dir(self) -> str | None:
        """Return the folder below which all experiments lie."""
        return None

    @property
    def root_dir(self) -> str | None:
        """Return the folder of all versions of this experiment."""
        return self.save_dir

    @property
    def log_dir(self) -> str | None:
        """Return the folder of this run."""
        return self.root_dir

    @property
    def directory(self) -> str | None:
        """Return the local folder of this run, or None."""
        return self.log_dir

    @property
    def group_separator(self) -> str:
        """Return what separates groups in a metric's name."""
        return "/"

    @property
    def experiment(self) -> Any:
        """Return the tracker's own object, started at the first use."""
        return None

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take values of one step."""
        raise TypeError(f"{type(self).__name__}: a logger must implement log_metrics(metrics, step).")

    def log_hyperparams(self, params: Mapping[str, Any] | Any, *args: Any, **kwargs: Any) -> None:
        """Take the hyper-parameters; the base keeps none."""

    def save(self) -> None:
        """Write what is held in memory."""

    def finalize(self, status: str) -> None:
        """Close; ``status`` is ``"success"``, ``"failed"`` or ``"interrupted"``."""
        self.save()

    def flush(self) -> None:
        """Return when all that was logged so far is written: calls of ``experiment`` that follow come after it.

        A tracker that is away or hangs is not waited for, and one that is slow no longer than ``flush_timeout`` without
        any progress. Inside ``exclusive`` nothing is waited for: nobody else could write.
        """
        if self._feed is not None:
            self._feed.drain()
            return
        with self.exclusive():
            self.save()

    def later(self, call: Callable[[], Any], what: str) -> None:
        """Make a call that may wait for the tracker: while a run feeds this logger in its thread, else at once.

        Args:
            call: What to do; it runs under the lock.
            what: What it sends, for messages.
        """
        if self._feed is not None:
            self._feed.later(call, what)
            return
        with self.exclusive():
            call()

    def tell(self, message: str) -> None:
        """Warn; while a run feeds this logger never by an exception, not even where warnings are errors."""
        import warnings

        with suppress(*([Warning] if self._feed is not None else [])):
            warnings.warn(message, stacklevel=3)

    def progressed(self) -> None:
        """Say, from inside a long call that the core made, that it goes on."""
        if self._feed is not None:
            self._feed.progressed()

    def step_or_current(self, step: int | None) -> int | None:
        """Return a step as given, or for None the one that the run is at; outside of a run it stays None."""
        return self._feed.step if step is None and self._feed is not None else step

    def finish(self, status: str) -> None:
        """Close under the lock."""
        with self.exclusive():
            self.finalize(status)

    @contextmanager
    def exclusive(self) -> Iterator[Any]:
        """Hold this logger's one lock, so that no other thread writes between; gives the logger.

        The thread that holds it may take it again.
        """
        with self._logger_lock():
            yield self

    def _logger_lock(self) -> threading.RLock:
        """Return the lock, made at its first use: a subclass need not call ``__init__``."""
        lock: threading.RLock | None = self.__dict__.get("_lock")
        if lock is None:
            from threading import RLock

            lock = self.__dict__.setdefault("_lock", RLock())  # atomic: two threads get the same
        return lock

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_feed")}
