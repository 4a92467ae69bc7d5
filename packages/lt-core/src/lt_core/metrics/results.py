"""The metrics that users read from the trainer: every write to them is in this file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lt_core.callback import RUNNING
from lt_core.metrics.outlets import Newest, as_tensor
from lt_core.metrics.store import MetricStore, SilentStore
from lt_core.state.timing import hook_action, timed

__all__ = ["Metrics", "Results"]


class Results:
    """Newest values of one run, by name.

    Each has the time at which it was logged or reduced, by the clock of the training's store: whoever reads, and
    however often, of two values of a name the newer one is found.

    Attributes:
        callback: For callbacks, as 0-dim tensors.
        times: The time of each of them; what a callback wrote there itself has none.
        names: The names that training, and evaluations, logged so far.
        logged: What the loggers were last given.
        bar: What the progress bar shows.
        doubles: Names whose values are shown in double precision.
    """

    def __init__(self) -> None:
        self.callback: dict[str, Any] = {}
        self.times: dict[str, int] = {}
        self.names: tuple[set[str], set[str]] = set(), set()
        self.logged: dict[str, float] = {}
        self.bar: dict[str, float] = {}
        self.doubles: set[str] = set()

    def read_callback(self, store: MetricStore) -> dict[str, Any]:
        """Take over what a store holds for callbacks, and return all values for callbacks."""
        self.take(store.newest(self.times), store.evaluates)
        return self.callback

    def take(self, found: Newest, evaluates: bool = False) -> None:
        """Take over values that are newer than the known ones.

        Args:
            found: The values and their times.
            evaluates: Whether they are an evaluation's, not training's.
        """
        self.names[evaluates].update(found)
        for name, (time, value) in found.items():
            if time > self.times.get(name, -1):
                self.times[name], self.callback[name] = time, value

    def read_bar(self, store: MetricStore, wait: bool = True) -> dict[str, float]:
        """Take over what a store holds for the progress bar, and return all values for the bar."""
        self.bar.update(store.progress_bar_metrics(wait))
        return self.bar

    def note_logged(self, values: Mapping[str, float]) -> None:
        """Remember what the loggers are given."""
        self.logged.update(values)

    def logged_tensors(self) -> dict[str, Tensor]:
        """Return what the loggers were last given as 0-dim tensors."""
        return {name: as_tensor(value, name in self.doubles) for name, value in self.logged.items()}

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Put back, after a block that ends well, what was there before it: nothing, or what a resumed run had."""
        kept = [(shown, dict(shown)) for shown in (self.callback, self.times, self.logged, self.bar)]
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
        profiler: What measures each ``self.log``, or None.

    Attributes:
        train: The training's store.
        current: The store that ``self.log`` writes to; after the run one that drops everything.
    """

    def __init__(self, module: Any, results: Results, silent: bool, profiler: Any = None) -> None:
        self.results, self._profiler = results, profiler
        self._module = module
        self._kind = SilentStore if silent else MetricStore
        self._ranks: dict[str, Any] = {}
        # Of a run that goes on around this one, where a hook hands its module to another trainer.
        self._outer = module._metrics, module._trainer_ref, RUNNING.get()
        self.train = self._make()
        self.current: MetricStore = self.train
        self._use(self.train)

    def _make(self) -> MetricStore:
        store = self._kind(**self._ranks)
        store.module, store.doubles = self._module, self.results.doubles
        if self._profiler is not None:
            store.add = timed(self._profiler, store.add, hook_action(self._module, "log"))  # type: ignore[method-assign]
        return store

    def _use(self, store: MetricStore) -> None:
        self.current = self._module._metrics = store
        RUNNING.set(self._module)

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
        store.time, store.evaluates = outer.time, True
        self._use(store)
        try:
            yield store
        finally:
            self._use(outer)
            outer.time = store.time

    def look_at_training(self, watched: Set[str]) -> None:
        """Show, before a validation, what training has logged so far; every rank must call it.

        Args:
            watched: The names that somebody looks at.
        """
        found = self.train.so_far(watched)
        self.results.read_callback(self.train)
        self.results.take(found)

    def of_epoch(self) -> frozenset[str]:
        """Return the names whose newest value is training's, reduced over the epoch or its part up to now."""
        self.results.read_callback(self.current)
        return frozenset(name for name, time in self.results.times.items() if time == self.train.reduced_at)

    def state_dict(self) -> dict[str, Any]:
        """Return what training logged in the running epoch, and the times of the values for callbacks."""
        self.results.read_callback(self.train)
        return {**self.train.state_dict(), "times": dict(self.results.times)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; in files of earlier releases no value has a time."""
        self.train.load_state_dict(state)
        self.results.times.update(state.get("times", {}))

    def release(self) -> None:
        """Let go of the module: what it logs from now on belongs to the run around this one, or to none."""
        store, trainer, running = self._outer
        self._module._metrics = store
        RUNNING.set(running)
        if store is not None:
            self._module._trainer_ref = trainer
        self.current = SilentStore()
