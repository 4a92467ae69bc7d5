"""The base of loggers, under the path that users' imports name."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from lt_core.tracking.dummy import DummyLogger
from lt_interface import DummyExperiment, Logger, is_rank_zero

__all__ = ["DummyExperiment", "DummyLogger", "Logger", "rank_zero_experiment"]


def rank_zero_experiment(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a logger's ``experiment`` that is made on the first process; others get an object that does nothing.

    Args:
        function: The method that makes the tracker's object; put ``@property`` above this.

    Example:
        >>> from unittest.mock import patch
        >>> class Own:
        ...     @property
        ...     @rank_zero_experiment
        ...     def experiment(self):
        ...         return "a run"
        >>> with patch.dict("os.environ", {"RANK": "0"}):
        ...     Own().experiment
        'a run'
    """

    @wraps(function)
    def experiment(self: Any) -> Any:
        return function(self) if is_rank_zero() else DummyExperiment()

    return experiment
