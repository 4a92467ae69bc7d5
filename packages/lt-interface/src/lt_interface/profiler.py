"""Profilers: how long each action of a run took."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

__all__ = ["Profiler"]


@runtime_checkable
class Profiler(Protocol):
    """Clock of named actions. The core wraps what it calls only when a profiler is given.

    An action's name is ``[<kind>]<owner>.<hook>``, such as ``[LightningModule]Net.on_train_start``. Actions nest.
    A profiler whose attribute ``passes_through`` is True is left out as if none was given.

    Example:
        >>> from contextlib import contextmanager
        >>> class Counter:
        ...     def __init__(self):
        ...         self.counts = {}
        ...     def setup(self, stage, local_rank=None, log_dir=None):
        ...         self.counts.clear()
        ...     def start(self, action_name):
        ...         self.counts[action_name] = self.counts.get(action_name, 0) + 1
        ...     def stop(self, action_name):
        ...         pass
        ...     @contextmanager
        ...     def profile(self, action_name):
        ...         self.start(action_name)
        ...         try:
        ...             yield action_name
        ...         finally:
        ...             self.stop(action_name)
        ...     def describe(self):
        ...         print(self.counts)
        ...     def teardown(self, stage):
        ...         pass
        >>> profiler = Counter()
        >>> with profiler.profile("[LightningModule]Net.on_train_start"):
        ...     pass
        >>> profiler.describe()
        {'[LightningModule]Net.on_train_start': 1}
        >>> isinstance(profiler, Profiler)
        True
    """

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Prepare for a call of the trainer and forget the one before; called in each rank once its device is set up.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
            local_rank: Number of this process on its node, from 0.
            log_dir: The folder in which reports may be written.
        """

    def start(self, action_name: str) -> None:
        """Note that an action begins.

        Args:
            action_name: The action's name.
        """

    def stop(self, action_name: str) -> None:
        """Note that an action ends.

        Args:
            action_name: The action's name.
        """

    def profile(self, action_name: str) -> AbstractContextManager[Any]:
        """Return a context that covers one action, with `start` and `stop`, an exception included.

        Args:
            action_name: The action's name.
        """

    def describe(self) -> None:
        """Print or write the report; called after a call of the trainer that went well."""

    def teardown(self, stage: str | None) -> None:
        """Free what `setup` took.

        Args:
            stage: The stage that `setup` was given.
        """
