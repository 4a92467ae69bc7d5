"""Loggers: where metrics go. A tracker subclasses `Logger` and implements a handful of methods.

Example:
    >>> class ListLogger(Logger):
    ...     def __init__(self):
    ...         self.rows = []
    ...     def log_metrics(self, metrics, step=None):
    ...         self.rows.append((step, metrics))
    >>> logger = ListLogger()
    >>> logger.log_metrics({"loss": 0.5}, step=49)
    >>> logger.rows
    [(49, {'loss': 0.5})]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import threading

__all__ = ["Feed", "Logger", "SupportsLogging"]


@runtime_checkable
class SupportsLogging(Protocol):
    """All that the core asks of a logger: to take metrics and hyper-parameters.

    Example:
        >>> isinstance(Logger(), SupportsLogging)
        True
        >>> class Null:
        ...     name = version = directory = None
        ...     def log_metrics(self, metrics, step=None):
        ...         pass
        ...     def log_hyperparams(self, params):
        ...         pass
        ...     def flush(self):
        ...         pass
        ...     def finish(self, status):
        ...         pass
        >>> isinstance(Null(), SupportsLogging)
        True
    """

    @property
    def name(self) -> str | None:
        """Return the experiment's name."""

    @property
    def version(self) -> int | str | None:
        """Return the run's version."""

    @property
    def directory(self) -> str | None:
        """Return the local folder of this run, or None."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take values of one step, as `Logger.log_metrics` does.

        Args:
            metrics: Numbers by name, nan and inf among them.
            step: The optimizer step, counted from 0; None where there is none.
        """

    def log_hyperparams(self, params: Any) -> None:
        """Take the hyper-parameters, as `Logger.log_hyperparams` does.

        Args:
            params: A dict or namespace of values of any type and depth.
        """

    def flush(self) -> None:
        """Return when all that was taken is written."""

    def finish(self, status: str) -> None:
        """Close the run, as `Logger.finish` does; it may be called twice.

        Args:
            status: ``"success"``, ``"failed"`` or ``"interrupted"``.
        """


class Feed(Protocol):
    """Handle through which a running trainer feeds a logger; the core implements it, loggers use it through `Logger`.

    Example:
        >>> class StoppedFeed:
        ...     step = 7
        ...     def drain(self):
        ...         pass
        ...     def progressed(self):
        ...         pass
        ...     def later(self, call, what):
        ...         call()
        >>> logger = Logger()
        >>> logger._feed = StoppedFeed()
        >>> logger.step_or_current(None)
        7
    """

    @property
    def step(self) -> int:
        """Return the optimizer step at which the run is."""

    def drain(self) -> None:
        """Return when all that is due was taken, or when the tracker is known to be away."""

    def progressed(self) -> None:
        """Note that the current call proceeds, so that the end of a run waits for it anew."""

    def later(self, call: Callable[[], Any], what: str) -> None:
        """Queue a call behind all that is due now, in the thread where waiting for the tracker delays nothing.

        Args:
            call: The call to make; it runs under the logger's lock.
            what: What it sends, for messages.
        """


class Logger:
    """Base of every tracker's logger.

    The core calls `log_metrics` on rank 0, from one background thread of its own, never two at a
    time, and always inside `exclusive`. A direct call from user code may run at the same
    moment: take ``with logger.exclusive():`` around a group of calls that must stay together.
    Construction starts nothing: files and connections open at the first use, so that a logger pickles.

    Attributes:
        delivery: ``"async"`` for that thread, ``"sync"`` to be called by the loop itself, None for
            what the trainer's ``logger_delivery`` says.
        flush_timeout: How many seconds the end of a run, or `flush`, waits for a tracker that makes no progress.
        open_seconds: How many seconds the start of a run waits for ``experiment``. After that, or where it raises an
            OSError that names no file and is no PermissionError, training begins: what is logged waits and is delivered
            when ``experiment`` comes. Any other error ends the run. None for one that limits itself and must be opened
            by the thread that trains. Folders are named after ``name``, ``version`` and ``directory``: these must not
            need the tracker, nor the lock once they were read.

    Example:
        >>> class LineLogger(Logger):
        ...     def __init__(self):
        ...         self.lines = []
        ...     @property
        ...     def name(self):
        ...         return "lines"
        ...     def log_metrics(self, metrics, step=None):
        ...         self.lines += [f"{step} {name}={value}" for name, value in metrics.items()]
        ...     def save(self):
        ...         print(*self.lines, sep="; ")
        >>> logger = LineLogger()
        >>> with logger.exclusive():
        ...     logger.log_metrics({"loss": 1.0}, step=0)
        ...     logger.log_metrics({"loss": 0.5}, step=1)
        >>> logger.finish("success")
        0 loss=1.0; 1 loss=0.5
    """

    delivery: str | None = None
    flush_timeout: float = 30.0
    open_seconds: float | None = 10.0
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
    def given_version(self) -> int | str | None:
        """Return the version if its user chose it, None where this run's is made up or the next free one.

        Where it was chosen, checkpoints of other versions are none of this run's.
        """
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
        """Write values of one step, or hold them until `save`.

        Args:
            metrics: Numbers by name, nan and inf among them; a name may hold ``/``, blanks and letters of any script.
            step: The optimizer step, counted from 0; None where there is none.

        Raises:
            TypeError: In this base: a logger must implement it.
            OSError: If the tracker cannot be reached; the same values come again later.
        """
        raise TypeError(f"{type(self).__name__}: a logger must implement log_metrics(metrics, step).")

    def log_hyperparams(self, params: Mapping[str, Any] | Any, *args: Any, **kwargs: Any) -> None:
        """Write the hyper-parameters; the base keeps none.

        The core calls it once a fit, before the first metrics. `lt_interface.hyperparameters` makes them plain.

        Args:
            params: A dict or namespace of values of any type and depth.
            *args: What the tracker takes beside them by place.
            **kwargs: What the tracker takes beside them by name.

        Example:
            >>> Logger().log_hyperparams({"lr": 0.1, "act": max})
        """

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Draw nothing: the base shows no graph.

        Args:
            model: The model.
            input_array: A batch to trace it with.

        Example:
            >>> Logger().log_graph(None)
        """

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Keep nothing: the base takes no checkpoints.

        Args:
            checkpoint_callback: The callback that saved.

        Example:
            >>> Logger().after_save_checkpoint(None)
        """

    def save(self) -> None:
        """Write what is held in memory, so that a reader sees it; an OSError makes the core send it again later."""

    def finalize(self, status: str) -> None:
        """Close the run; called under the lock, once a call of the trainer. More may be logged afterwards.

        Args:
            status: ``"success"``, ``"failed"`` or ``"interrupted"``.

        Example:
            >>> Logger().finalize("success")
        """
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
            call: The call to make; it runs under the lock.
            what: What it sends, for messages.

        Example:
            >>> Logger().later(lambda: print("sent"), "a picture")
            sent
        """
        if self._feed is not None:
            self._feed.later(call, what)
            return
        with self.exclusive():
            call()

    def tell(self, message: str) -> None:
        """Warn; while a run feeds this logger never by an exception, not even where warnings are errors.

        Args:
            message: What is wrong and what to do about it.

        Example:
            >>> import warnings
            >>> with warnings.catch_warnings(record=True) as caught:
            ...     warnings.simplefilter("always")
            ...     Logger().tell("the tracker is slow; metrics arrive late")
            >>> str(caught[0].message)
            'the tracker is slow; metrics arrive late'
        """
        import warnings

        with suppress(*([Warning] if self._feed is not None else [])):
            warnings.warn(message, stacklevel=3)

    def progressed(self) -> None:
        """Report from inside a long call of the core that it proceeds, so that it is not given up as hanging."""
        if self._feed is not None:
            self._feed.progressed()

    def step_or_current(self, step: int | None) -> int | None:
        """Return a step as given, or for None that of the run; outside of a run it stays None.

        Args:
            step: The step that a direct call was given, or None.

        Example:
            >>> Logger().step_or_current(3), Logger().step_or_current(None) is None
            (3, True)
        """
        return self._feed.step if step is None and self._feed is not None else step

    def finish(self, status: str) -> None:
        """Close the run under the lock; the core calls it when a call of the trainer ends.

        Args:
            status: ``"success"``, ``"failed"`` or ``"interrupted"``.
        """
        with self.exclusive():
            self.finalize(status)

    @contextmanager
    def exclusive(self) -> Iterator[Any]:
        """Hold this logger's one lock, so that no other thread writes in between.

        The thread that holds it may take it again.

        Yields:
            The logger.
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
