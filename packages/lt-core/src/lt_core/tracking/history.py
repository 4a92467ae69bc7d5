"""Return what a fit logged: a table with one row an epoch, and each metric's series by step."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lt_interface.errors import LTError, Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lt_core.tracking.journal import Journal

__all__ = ["History"]


class History(dict[str, list[float]]):
    """Last value that each metric had in each epoch of a fit: lists of one length, nan where it was not logged.

    ``pandas.DataFrame(trainer.history)`` is a table with one row an epoch, ``pandas.DataFrame(trainer.history.steps)``
    one with a row for each step at which something was logged.

    Attributes:
        steps: For each metric all its values by their x-axis; of several at one step the newest.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[str, dict[int, float]] = {}

    @classmethod
    def read(cls, journal: Journal, epochs: int | None = None) -> History:
        """Return the history that a journal holds; what validate and test logged is no part of it.

        Args:
            journal: The journal.
            epochs: How many epochs have begun; as many as the records need if None. What is logged after the last one
                belongs to that.
        """
        history, records = cls(), [(r.epoch, r) for r in journal.read() if r.epoch is not None]
        count = max(1, epochs or max((epoch for epoch, _ in records), default=0) + 1)
        for epoch, record in records:
            for name, value in record.values.items():
                history.setdefault(name, [math.nan] * count)[min(epoch, count - 1)] = value
                history.steps.setdefault(name, {})[record.step] = value
        if history:
            history["epoch"] = list(range(count))
        return history

    def plot(self, path: str | os.PathLike[str] | None = None, keys: Iterable[str] | None = None) -> Figure:
        """Draw one panel for each group of metrics: ``loss`` and ``val_loss`` share one.

        Args:
            path: Where to save the picture, or None.
            keys: The metrics to draw; all but the epoch if None.

        Raises:
            LTError: If matplotlib is missing; names the command that installs it.
            KeyError: If a name was never logged.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            fix = "Run: pip install 'lt-core[plot]'"
            raise LTError(Problem("History.plot", "this needs matplotlib", fix=fix)) from None
        groups: dict[str, list[str]] = {}
        for key in [k for k in self if k != "epoch"] if keys is None else keys:
            if key not in self:
                raise KeyError(f"{key!r} was never logged. Logged: {', '.join(self)}")
            stem = key.removesuffix("_step").removesuffix("_epoch")
            groups.setdefault(stem.removeprefix("train_").removeprefix("val_").removeprefix("test_"), []).append(key)
        figure = Figure(figsize=(7, 3 * max(len(groups), 1)), layout="constrained")
        panels = figure.subplots(max(len(groups), 1), squeeze=False)[:, 0]
        for axes, (stem, members) in zip(panels, groups.items(), strict=False):
            for key in members:
                series = self.steps[key]
                marker = "o" if len(series) < 40 else None
                axes.plot(list(series), list(series.values()), label=key, marker=marker, markersize=3)
            axes.set(xlabel="step", ylabel=stem)
            axes.grid(alpha=0.3)
            axes.legend()
        if path is not None:
            figure.savefig(os.fspath(path), dpi=120)
        return figure
