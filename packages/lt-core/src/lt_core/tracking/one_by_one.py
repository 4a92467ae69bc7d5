"""Give records to a logger that has only ``log_metrics``: the one way into a logger is that of records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from inspect import signature
from typing import Any

from lt_core.tracking.journal import Record

__all__ = ["OneByOne"]


class OneByOne:
    """Wrapper that takes records for a logger with ``log_metrics`` alone; it cannot be asked, so none comes twice.

    Args:
        logger: The logger.
    """

    def __init__(self, logger: Any) -> None:
        self._log, self._end = _by_name(logger.log_metrics), 0

    def log_records(self, records: Sequence[Record], unsure: bool) -> None:
        """Hand over the values of each record that was not taken yet."""
        for record in records:
            if record.end > self._end:
                self._log(dict(record.values), record.step)
                self._end = record.end


def _by_name(log: Callable[..., Any]) -> Callable[[dict[str, float], int], Any]:
    """Return what calls ``log_metrics`` by the usual names, where it has them: mocks are asked what they were given."""
    with suppress(TypeError, ValueError):
        signature(log).bind(metrics={}, step=0)
        return lambda values, step: log(metrics=values, step=step)
    return log
