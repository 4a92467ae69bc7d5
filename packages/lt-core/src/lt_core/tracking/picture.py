"""Draw the curves of metrics. Imported only when somebody wants to see them: matplotlib is an extra."""

from __future__ import annotations

import io
from collections.abc import Mapping

from matplotlib.figure import Figure

__all__ = ["Picture"]


class Picture(Figure):
    """Figure that a notebook shows without pyplot and its windows."""

    @classmethod
    def of(cls, curves: Mapping[str, Mapping[int, float]]) -> Picture:
        """Return a picture with one panel for each group of metrics.

        Args:
            curves: The values of each metric by their step.
        """
        groups: dict[str, list[str]] = {}
        for key in curves:
            stem = key.removesuffix("_step").removesuffix("_epoch")
            groups.setdefault(stem.removeprefix("train_").removeprefix("val_").removeprefix("test_"), []).append(key)
        figure = cls(figsize=(7, 3 * max(len(groups), 1)), layout="constrained")
        panels = figure.subplots(max(len(groups), 1), squeeze=False)[:, 0]
        for axes, (stem, members) in zip(panels, groups.items(), strict=False):
            for key in members:
                marker = "o" if len(curves[key]) < 40 else None
                axes.plot(list(curves[key]), list(curves[key].values()), label=key, marker=marker, markersize=3)
            axes.set(xlabel="step", ylabel=stem)
            axes.grid(alpha=0.3)
            axes.legend()
        return figure

    def _repr_png_(self) -> bytes:
        """Return what a notebook shows."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=80)
        return buffer.getvalue()
