"""Take everything and keep nothing: stands in for loggers in a fast development run."""

from __future__ import annotations

from typing import Any

from lt_interface import DummyExperiment, Logger

__all__ = ["DummyExperiment", "DummyLogger"]


class DummyLogger(Logger):
    """Logger that accepts any call."""

    def __init__(self) -> None:
        super().__init__()
        self._experiment = DummyExperiment()

    @property
    def name(self) -> str:
        """Return an empty name."""
        return ""

    @property
    def version(self) -> str:
        """Return an empty version."""
        return ""

    @property
    def experiment(self) -> DummyExperiment:
        """Return an object that answers everything with nothing."""
        return self._experiment

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Drop the metrics."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("log_records", "replay_state", "rewind", "join", "share_version"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None
