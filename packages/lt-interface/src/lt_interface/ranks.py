"""Guards that keep loggers silent on all processes but the first."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from lt_interface.world import World

__all__ = ["DummyExperiment", "is_rank_zero", "rank_zero_only", "set_world"]

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
    if _world is not None:
        return _world.is_global_zero
    return next((os.environ[name] for name in _NAMES if name in os.environ), "0") in {"", "0"}


def rank_zero_only(function: Callable[P, R]) -> Callable[P, R | None]:
    """Make a function do nothing and return None on all processes but the first.

    Args:
        function: The function, or a method in its class.

    Returns:
        The guarded function.

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
    """

    @wraps(function)
    def only(*args: P.args, **kwargs: P.kwargs) -> R | None:
        return function(*args, **kwargs) if is_rank_zero() else None

    return only


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
