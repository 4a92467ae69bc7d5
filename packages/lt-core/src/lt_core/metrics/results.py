"""The metrics that users read from the trainer: every write to them is in this file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lt_core.metrics.store import MetricStore, SilentStore

__all__ = ["Metrics", "Results"]


class Results:
    """Newest values of one run, by name.

    Attributes:
        callback: For callbacks, as 0-dim tensors.
        logged: What the loggers were last given.
        bar: What the progress bar shows.
    """

    def __init__(self) -> None:
        self.callback: dict[str, Any] = {}
        self.logged: dict[str, float] = {}
        self.bar: dict[str, float] = {}

    def read_callback(self, store: MetricStore) -> dict[str, Any]:
        """Take over what a store holds for callbacks, and return all values for callbacks."""
        self.callback.update(store.callback_metrics())
        return self.callback

    def read_bar(self, store: MetricStore, wait: bool = True) -> dict[str, float]:
        """Take over what a store holds for the progress bar, and return all values for the bar."""
        self.bar.update(store.progress_bar_metrics(wait))
        return self.bar

    def note_logged(self, values: Mapping[str, float]) -> None:
        """Remember what the loggers are given."""
        self.logged.update(values)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Put back, after a block that ends well, what was there before it: nothing, or what a resumed run had."""
        kept = [(shown, dict(shown)) for shown in (self.callback, self.logged, self.bar)]
        yield
        for shown, before in kept:
            shown.clear()
            shown.update(before)

    def restore_callback(self, values: Mapping[str, Any]) -> None:
        """Add the values for callbacks that a checkpoint holds."""
        self.callback.update(values)


class Metrics:
    """Stores of one run: that of the training, and the one that ``self.log`` writes to at this moment.

    Args:
        module: The user's module; it reads its current store from the attribute ``_metrics``.
        results: Where users read the values.
        silent: Whether everything that is logged is dropped.

    Attributes:
        train: The training's store.
        current: The store that ``self.log`` writes to; after the run one that drops everything.
    """

    def __init__(self, module: Any, results: Results, silent: bool) -> None:
        self.results = results
        self._module = module
        self._kind = SilentStore if silent else MetricStore
        self._ranks: dict[str, Any] = {}
        # Of a run that goes on around this one, where a hook hands its module to another trainer.
        self._outer = module._metrics, module._trainer_ref
        self.train = self._make()
        self.current: MetricStore = self.train
        self._use(self.train)

    def _make(self) -> MetricStore:
        store = self._kind(**self._ranks)
        store.module = self._module
        return store

    def _use(self, store: MetricStore) -> None:
        self.current = self._module._metrics = store

    @property
    def live(self) -> bool:
        """Return whether the run goes on, so that what its module logs belongs to it."""
        return self._module._metrics is self.current

    def connect(self, collectives: Any, device: Any, rank: int, world_size: int) -> None:
        """Let the stores exchange values with the other ranks; nothing may have been logged before."""
        self._ranks = {"collectives": collectives, "device": device, "rank": rank, "world_size": world_size}
        self.train = self._make()
        self._use(self.train)

    @contextmanager
    def evaluation(self) -> Iterator[MetricStore]:
        """Let ``self.log`` write to a new store inside the block."""
        outer = self.current
        store = self._make()
        self._use(store)
        try:
            yield store
        finally:
            self._use(outer)

    def release(self) -> None:
        """Let go of the module: what it logs from now on belongs to the run around this one, or to none."""
        store, trainer = self._outer
        self._module._metrics = store
        if store is not None:
            self._module._trainer_ref = trainer
        self.current = SilentStore()
