"""Return each metric's values in the order they were logged."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lt_interface.errors import LTError, Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lt_core.tracking.journal import Journal

__all__ = ["History"]


class History(dict[str, list[float]]):
    """Values of each metric in the order they were logged.

    Attributes:
        steps: The x-axis value of each of them, by the same names.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[str, list[int]] = {}

    @classmethod
    def read(cls, journal: Journal) -> History:
        """Return the history that a journal holds."""
        history = cls()
        for record in journal.read():
            for name, value in record.values.items():
                history.setdefault(name, []).append(value)
                history.steps.setdefault(name, []).append(record.step)
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
                marker = "o" if len(self[key]) < 40 else None
                axes.plot(self.steps[key], self[key], label=key, marker=marker, markersize=3)
            axes.set(xlabel="step", ylabel=stem)
            axes.grid(alpha=0.3)
            axes.legend()
        if path is not None:
            figure.savefig(os.fspath(path), dpi=120)
        return figure
