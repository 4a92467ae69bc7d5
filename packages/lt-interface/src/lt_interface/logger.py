"""Say where metrics go. A tracker subclasses `Logger` and implements a handful of methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import threading

    from torch import Tensor, nn

__all__ = ["Logger", "SupportsCheckpoints", "SupportsGraph", "SupportsLogging", "SupportsRewind"]


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


class Logger:
    """Be the base of every tracker's logger.

    The core calls `log_metrics` from one background thread of its own, never two at a
    time, and always inside `exclusive`. A direct call from user code may run at the same
    moment: take ``with logger.exclusive():`` around a group of calls that must stay together.
    """

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
        """Return when all that was taken is written."""
        with self.exclusive():
            self.save()

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
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}


@runtime_checkable
class SupportsRewind(Protocol):
    """Forget what was logged after the point that a resumed run starts from."""

    def rewind(self, step: int, version: int | str | None) -> bool:
        """Go on in the run ``version`` and drop what lies after ``step``.

        Returns:
            True if the whole history is to be sent again, because the logger forgot it or
            knows what it already has; False if it must get nothing a second time.
        """
        ...


@runtime_checkable
class SupportsGraph(Protocol):
    """Show the model's graph."""

    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Draw the graph that ``input_array`` takes through the model."""
        ...


@runtime_checkable
class SupportsCheckpoints(Protocol):
    """Keep checkpoints with the run."""

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Look at a checkpoint callback after it saved."""
        ...
