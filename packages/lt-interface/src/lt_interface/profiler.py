"""Profilers: how long each action of a run took."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

__all__ = ["Profiler", "TakesFacts", "TakesModule"]


@runtime_checkable
class Profiler(Protocol):
    """Clock of named actions. The core wraps what it calls only when a profiler is given.

    An action's name is ``[<kind>]<owner>.<hook>``, such as ``[LightningModule]Net.on_train_start``. Actions nest.
    Whole parts of a run have the names ``[Trainer]setup``, ``run_training_epoch``, ``run_training_batch``,
    ``run_validation``, ``save_checkpoint`` and alike.
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


@runtime_checkable
class TakesFacts(Protocol):
    """Ability of a profiler to say what its figures mean: it is given the flags and sizes of the run.

    Example:
        >>> class Advising:
        ...     def take_facts(self, facts):
        ...         print(f"{facts['num_workers']} workers")
        >>> isinstance(Advising(), TakesFacts)
        True
    """

    def take_facts(self, facts: Mapping[str, Any]) -> None:
        """Take what is known of a run, before its report.

        Args:
            facts: Plain values by name, such as ``num_workers``, ``batch_size`` and ``log_every_n_steps``; those that
                are not known are missing.
        """


@runtime_checkable
class TakesModule(Protocol):
    """Ability of a profiler to look inside the model.

    Example:
        >>> class Looking:
        ...     def take_module(self, module):
        ...         self.names = [name for name, _ in module.named_modules()]
        >>> isinstance(Looking(), TakesModule)
        True
    """

    def take_module(self, module: Any) -> None:
        """Take the module of a run once its layers and parameters are final.

        Args:
            module: The user's module.
        """
