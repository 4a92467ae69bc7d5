"""Compare what is reduced with exact arithmetic, whatever else happens on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from inspect import signature
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lt_core import LightningModule
from lt_core.checkpoint.format.tree import clone
from lt_core.metrics.store import TRAIN_EPOCH_END, TRAIN_STEP, MetricStore

DEFAULTS = {
    name: parameter.default
    for name, parameter in signature(LightningModule.log).parameters.items()
    if name not in {"self", "name", "value", "batch_size"}
}
REDUCTIONS = ("mean", "sum", "min", "max")


class Far(Tensor):
    """Tensor that says it lies on another device, so that the store does not read it at once."""

    is_cpu = False

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)


def far(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64).as_subclass(Far)


FORMS: list[Callable[[float], Any]] = [float, lambda v: torch.tensor(v, dtype=torch.float64), far]
numbers = st.floats(-1e6, 1e6)
entries = st.tuples(st.just("log"), numbers, st.integers(1, 64), st.integers(0, 2), st.booleans())
looks = st.tuples(st.sampled_from(["take", "callbacks", "bar", "epoch", "save", "move", "mute"]))
stories = st.lists(st.one_of(entries, entries, looks), max_size=150)


def opened() -> MetricStore:
    store = MetricStore()
    store.scope, store.hook = TRAIN_STEP, "training_step"
    return store


def log(store: MetricStore, value: Any, size: int, explicit: bool) -> None:
    """Log one value under each reduction, the batch's size given or found."""
    store.batch, store.size = [torch.zeros(size, 2), torch.zeros(size)], None
    for op in REDUCTIONS:
        options: Any = tuple({**DEFAULTS, "on_epoch": True, "reduce_fx": op, "prog_bar": True}.values())
        store.add(op, value, options, size if explicit else None)


def look(store: MetricStore, what: str) -> MetricStore:
    """Do what a run does between two logs; none of it may change an epoch's value."""
    if what == "take":
        store.take_step()
    elif what == "callbacks":
        store.callback_metrics()
    elif what == "bar":
        store.progress_bar_metrics()
    elif what == "epoch":
        store.epoch_metrics()
    elif what == "mute":
        store.muted = True
        log(store, 1e9, 99, True)
        store.muted = False
    else:
        state = store.state_dict()
        if what == "move":  # through a checkpoint's own encoding into a new process
            store = opened()
            store.load_state_dict(clone(json.loads(json.dumps(state))))
    return store


def fed(store: MetricStore, story: list[Any]) -> MetricStore:
    for what, *rest in story:
        if what == "log":
            value, size, form, explicit = rest
            log(store, FORMS[form](value), size, explicit)
        else:
            store = look(store, what)
    return store


def ended(store: MetricStore) -> dict[str, float]:
    store.scope, store.batch = TRAIN_EPOCH_END, None
    return store.take_epoch()


@given(stories)
@settings(deadline=None, max_examples=60)
def test_epoch_values_are_exact(story: list[Any]) -> None:
    """Means weigh each value by its samples, to float error; sums, bounds and names are as by hand."""
    logged = [(value, size) for what, *rest in story if what == "log" for value, size, *_ in [rest]]
    found = ended(fed(opened(), story))
    if not logged:
        assert found == {}
        return
    values = [Fraction(v) for v, _ in logged]
    mean = sum(Fraction(v) * n for v, n in logged) / sum(n for _, n in logged)
    scale = max(abs(v) for v, _ in logged) * len(logged) * 64 + 1e-300
    assert found["mean_epoch"] == pytest.approx(float(mean), abs=scale * 1e-14)
    assert found["sum_epoch"] == pytest.approx(float(sum(values)), abs=scale * 1e-14)
    assert (found["min_epoch"], found["max_epoch"]) == (float(min(values)), float(max(values)))


@given(stories)
@settings(deadline=None, max_examples=60)
def test_nothing_between_two_logs_changes_the_epoch(story: list[Any]) -> None:
    """Taking, reading, saving, moving to another process and muted looks leave the epoch's values the same to the bit.

    So does where tensors lie: those of a device are added up later, but in the same order.
    """
    plain = [
        ("log", value, size, 0, explicit)
        for what, *rest in story
        if what == "log"
        for value, size, _, explicit in [rest]
    ]
    expected = ended(fed(opened(), plain))
    found = ended(fed(opened(), story))
    assert {k: found[k] for k in expected} == expected


@given(st.lists(st.tuples(numbers, st.integers(1, 9)), min_size=1, max_size=130), st.integers(1, 130))
@settings(deadline=None, max_examples=40)
def test_device_values_keep_no_chunk_for_long(values: list[tuple[float, int]], every: int) -> None:
    """Values on a device are kept as they are at most fifty at a time, and folding them often changes nothing."""
    often, seldom = opened(), opened()
    for i, (value, size) in enumerate(values):
        for store in (often, seldom):
            log(store, far(value), size, True)
        if i % every == 0:
            often.epoch_metrics()
        chunks = [slot.chunk for slot in seldom._slots.values()]
        assert all(chunk is not None and len(chunk) < 50 for chunk in chunks)
    assert ended(often) == ended(seldom)
