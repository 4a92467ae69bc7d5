"""Say how long each action of a run took."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

__all__ = ["Profiler"]


@runtime_checkable
class Profiler(Protocol):
    """Time named actions. The loop wraps what it calls only when a profiler is given."""

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Prepare for a stage."""
        ...

    def start(self, action_name: str) -> None:
        """Note that an action begins."""
        ...

    def stop(self, action_name: str) -> None:
        """Note that an action ends."""
        ...

    def profile(self, action_name: str) -> AbstractContextManager[Any]:
        """Return a context that covers one action."""
        ...

    def describe(self) -> None:
        """Print or write the report."""
        ...

    def teardown(self, stage: str | None) -> None:
        """Free what ``setup`` took."""
        ...
