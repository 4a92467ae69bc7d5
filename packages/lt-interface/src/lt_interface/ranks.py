"""Guards that keep loggers silent on all processes but the first."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from lt_interface.world import World

__all__ = ["DummyExperiment", "is_rank_zero", "rank_zero_info", "rank_zero_only", "rank_zero_warn", "set_world"]

P = ParamSpec("P")
R = TypeVar("R")


# Where a process finds its rank: what a program inside another's job sets comes first.
_NAMES = ("RANK", "OMPI_COMM_WORLD_RANK", "JSM_NAMESPACE_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID", "PMI_RANK")
_world: World | None = None


def set_world(world: World | None) -> None:
    """Set the place of this process, which from then on counts in place of the environment variables.

    The core calls it after `Strategy.setup`.

    Args:
        world: The place; None for that of the environment again.

    Example:
        >>> set_world(World(rank=1, size=2))
        >>> is_rank_zero()
        False
        >>> set_world(None)
    """
    global _world
    _world = world


def is_rank_zero() -> bool:
    """Return whether this process is the first of its run: by `set_world`, before it by its environment variables.

    ``RANK`` takes precedence over those of MPI, LSF and Slurm; a process that has none is the first.

    Example:
        >>> from unittest.mock import patch
        >>> with patch.dict("os.environ", {"RANK": "3"}):
        ...     is_rank_zero()
        False
    """
    return _rank() == 0


def _rank() -> int:
    if _world is not None:
        return _world.rank
    given = next((os.environ[name] for name in _NAMES if name in os.environ), "")
    return int(given) if given.isdecimal() else 0


class _RankZeroOnly:
    """Decorator that makes a function do nothing and return None on all processes but the first.

    Example:
        >>> from unittest.mock import patch
        >>> @rank_zero_only
        ... def report(text):
        ...     print(text)
        >>> with patch.dict("os.environ", {"RANK": "0"}):
        ...     report("written once")
        written once
        >>> with patch.dict("os.environ", {"RANK": "3"}):
        ...     report("written once")
        ...     rank_zero_only.rank
        3
    """

    @property
    def rank(self) -> int:
        """Return the number of this process, as `is_rank_zero` knows it."""
        return _rank()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R | None]:
        """Return the guarded function.

        Args:
            function: The function, or a method in its class.
        """

        @wraps(function)
        def only(*args: P.args, **kwargs: P.kwargs) -> R | None:
            return function(*args, **kwargs) if is_rank_zero() else None

        return only


rank_zero_only = _RankZeroOnly()


@rank_zero_only
def rank_zero_info(message: object, *args: Any, stacklevel: int = 4, **kwargs: Any) -> None:
    """Log a line of information on the first process.

    Args:
        message: The line, with places for arguments as in ``logging``.
        *args: The arguments.
        stacklevel: As in Lightning: 4 is the caller.
        **kwargs: More for ``logging.Logger.info``.

    Example:
        >>> rank_zero_info("%s samples", 40)
    """
    logging.getLogger("lt_core").info(message, *args, stacklevel=stacklevel - 1, **kwargs)


@rank_zero_only
def rank_zero_warn(message: str, stacklevel: int = 4, category: type[Warning] = UserWarning) -> None:
    """Warn on the first process.

    Args:
        message: The warning.
        stacklevel: As in Lightning: 4 is the caller.
        category: The kind of warning.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as seen:
        ...     warnings.simplefilter("always")
        ...     rank_zero_warn("the data is sorted")
        >>> [str(each.message) for each in seen]
        ['the data is sorted']
    """
    warnings.warn(message, category, stacklevel=stacklevel - 1)


class DummyExperiment:
    """Tracker's object of a silent process: each call and each item of it does nothing.

    Example:
        >>> experiment = DummyExperiment()
        >>> experiment.add_scalar("loss", 0.5)
        >>> experiment["tags"].append("baseline")
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._nothing

    @staticmethod
    def _nothing(*args: Any, **kwargs: Any) -> None:
        """Drop everything."""

    def __getitem__(self, key: Any) -> DummyExperiment:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        """Drop the item."""
