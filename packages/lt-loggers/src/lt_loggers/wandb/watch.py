"""Histograms of a model's gradients and parameters, each at the step that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lt_interface.versions import unless_silent
from lt_loggers.arguments import check_choice
from lt_loggers.wandb.media import WandbMedia, made

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["WandbWatching"]

BINS = 64


@dataclass(eq=False)
class Watch:
    """Histograms gathered while gradients are computed, a row for each step.

    wandb's own hooks would put them beside whatever row is written next, which is another step's where rows are
    written behind the loop's back.

    Attributes:
        model: The model.
        log: ``"gradients"``, ``"parameters"`` or ``"all"``.
        every: Every how many gradients of a parameter.
        now: Returns the step that the run is at, or None.
        send: Takes histograms by name, as counts and edges, and their step.
    """

    model: nn.Module
    log: str
    every: int
    now: Callable[[], int | None]
    send: Callable[[Mapping[str, Any], int | None], None]

    def __post_init__(self) -> None:
        self._row: dict[str, Any] = {}
        self._step: int | None = None
        self._counts: dict[str, int] = {}
        watched = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        hooks: list[tuple[Any, Callable[[Any], None]]] = [(p, partial(self._note, name, p)) for name, p in watched]
        self._handles = [p.register_hook(hook) for p, hook in hooks]
        self._whole = len(watched) * (2 if self.log == "all" else 1)

    def _note(self, name: str, parameter: Tensor, gradient: Tensor) -> None:
        self._counts[name] = self._counts.get(name, 0) + 1
        if self._counts[name] % self.every:
            return
        step = self.now()
        if step != self._step or f"gradients/{name}" in self._row or f"parameters/{name}" in self._row:
            self.flush()
            self._step = step
        if self.log != "parameters":
            self._row[f"gradients/{name}"] = _histogram(gradient)
        if self.log != "gradients":
            self._row[f"parameters/{name}"] = _histogram(parameter)
        if len(self._row) == self._whole:
            self.flush()

    def flush(self) -> None:
        """Send what was gathered."""
        row, self._row = self._row, {}
        if row:
            self.send(row, self._step)

    def end(self) -> None:
        """Send the rest and release the model."""
        self.flush()
        for handle in self._handles:
            handle.remove()


class WandbWatching(WandbMedia):
    """Models that `WandbLogger` watches."""

    _watches: list[Watch]
    _open: Any

    @unless_silent
    def watch(
        self, model: nn.Module, log: str | None = "gradients", log_freq: int = 100, log_graph: bool = True
    ) -> None:
        """Log histograms of gradients, parameters or ``"all"`` every ``log_freq`` batches, at the run's step.

        Args:
            model: The model.
            log: ``"gradients"``, ``"parameters"``, ``"all"``, or None for none.
            log_freq: Every how many gradients of a parameter.
            log_graph: Whether W&B shows the model's graph.
        """
        check_choice("WandbLogger.watch", "log", log, (None, "gradients", "parameters", "all"))
        if log_graph:
            with self.exclusive():
                self.experiment.watch(model, log=None, log_graph=True)
        if log is not None:
            self._watches.append(Watch(model, log, log_freq, partial(self.step_or_current, None), self._show_watched))

    def _show_watched(self, histograms: Mapping[str, Any], step: int | None) -> None:
        row = {name: made("Histogram", np_histogram=value) for name, value in histograms.items()}
        self._send([self._row(row, step)], f"histograms of step {step}")

    def _send_watched(self) -> None:
        for watch in self._watches:
            watch.flush()

    def unwatch(self, model: nn.Module) -> None:
        """End what `watch` began.

        Args:
            model: The module that is watched.
        """
        ended = [watch for watch in self._watches if watch.model is model]
        self._watches = [watch for watch in self._watches if watch.model is not model]
        for watch in ended:
            watch.end()
        if self._open is not None:
            with self.exclusive():
                self.experiment.unwatch(model)


def _histogram(values: Tensor) -> tuple[list[float], list[float]]:
    """Return counts and edges of the finite values."""
    import torch

    flat = values.detach().float().flatten()
    flat = flat[torch.isfinite(flat)]
    low, high = (float(flat.min()), float(flat.max())) if flat.numel() else (0.0, 0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(flat.cpu(), BINS, low, high)
    return counts.tolist(), torch.linspace(low, high, BINS + 1).tolist()
