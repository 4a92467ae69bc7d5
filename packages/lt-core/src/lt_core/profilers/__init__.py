"""Measure how long the actions of a run take; the base does nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lt_core.names import finder
from lt_core.notices import say
from lt_interface import Profiler

__all__ = ["PassThroughProfiler", "Profiler"]

__getattr__ = finder(__name__)


class PassThroughProfiler:
    """Profiler that measures nothing: the loop leaves it out, so that it costs nothing.

    Subclass it and set ``passes_through = False`` to write a profiler of your own. The actions are
    ``[Callback]<state key>.<hook>``; ``[LightningModule]<class>.<hook>`` and ``[LightningDataModule]<class>.<hook>``;
    ``[Strategy]<class>.`` with ``training_step`` and the other steps, ``backward``, ``optimizer_step`` and
    ``batch_to_device``; ``[Trainer]`` with ``train_dataloader_next`` and alike, ``save_checkpoint`` and ``log``.
    """

    passes_through = True

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Prepare for a stage."""

    def start(self, action_name: str) -> None:
        """Note that an action begins."""

    def stop(self, action_name: str) -> None:
        """Note that an action ends."""

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        """Cover one action with start and stop."""
        self.start(action_name)
        try:
            yield action_name
        finally:
            self.stop(action_name)

    def summary(self) -> str:
        """Return the report."""
        return ""

    def describe(self) -> None:
        """Print the report, if there is one."""
        text = self.summary()
        if text:
            say(text)

    def teardown(self, stage: str | None) -> None:
        """Free what setup took."""
