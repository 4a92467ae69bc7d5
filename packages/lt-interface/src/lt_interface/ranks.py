"""Keep loggers silent on all processes but the first."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

__all__ = ["DummyExperiment", "is_rank_zero", "rank_zero_only"]

P = ParamSpec("P")
R = TypeVar("R")


def is_rank_zero() -> bool:
    """Return whether this process is the first of its run, as far as its environment tells."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) in {"", "0"}


def rank_zero_only(function: Callable[P, R]) -> Callable[P, R | None]:
    """Make a function do nothing and return None on all processes but the first."""

    @wraps(function)
    def only(*args: P.args, **kwargs: P.kwargs) -> R | None:
        return function(*args, **kwargs) if is_rank_zero() else None

    return only


class DummyExperiment:
    """Answer every call and every item with nothing."""

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
