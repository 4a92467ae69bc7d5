"""Log metric objects, and take them and the store through a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import epoch_of, evaluation, log, training
from torch import nn
from torchmetrics.classification import BinaryPrecision, BinaryRecall

from lt_core.metrics.objects import collect, restore
from lt_core.metrics.store import (
    EVAL_EPOCH_END,
    MetricStore,
)
from lt_interface.errors import MisconfigurationException

# ---------------------------------------------------------------- metric objects


class Counter:
    """Metric of no library: the mean of what it saw."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.resets = 0
        self.key: Callable[[float], float] = lambda x: x

    def update(self, value: float) -> None:
        self.seen.append(self.key(value))

    def compute(self) -> float:
        return sum(self.seen) / len(self.seen)

    def reset(self) -> None:
        self.seen.clear()
        self.resets += 1


def test_metric_object_of_an_epoch() -> None:
    """It is read when the epoch ends and reset once, and its value stays readable."""
    store, metric = evaluation(), Counter()
    for value in (1.0, 2.0, 6.0):
        metric.update(value)
        log(store, "m", metric)
        log(store, "again", metric)
    store.scope = EVAL_EPOCH_END
    assert float(store.callback_metrics()["m"]) == 3.0
    assert store.take_epoch() == {"m": 3.0, "again": 3.0}
    assert (metric.seen, metric.resets) == ([], 1)
    assert float(store.callback_metrics()["m"]) == 3.0
    assert store.epoch_metrics() == {"m": 3.0, "again": 3.0}
    store.reset()
    assert metric.resets == 1


def test_reset_reaches_objects_of_an_epoch_that_was_left() -> None:
    """An epoch that never came to its end leaves no values in the metric objects for the next one."""
    store, metric, kept = training(), Counter(), Counter()
    for each, flags in ((metric, {"on_step": False, "on_epoch": True}), (kept, {})):
        each.update(1.0)
        log(store, f"m{id(each)}", each, **flags)
    store.reset()
    assert (metric.seen, kept.seen) == ([], [1.0])


def test_metric_object_by_step() -> None:
    """By step it gives its forward's value if it keeps that, else what it computes when somebody asks."""
    store, counter, mean = training(), Counter(), torchmetrics.MeanMetric()
    for value in (1.0, 3.0):
        counter.update(value)
        mean(value)
        log(store, "counter", counter)
        log(store, "mean", mean, on_step=True, on_epoch=True)
    assert {k: float(v) for k, v in store.callback_metrics().items() if k != "counter"} == {
        "mean": 3.0,
        "mean_step": 3.0,
    }
    assert store.take_step() == {"counter": 2.0, "mean_step": 3.0}
    assert epoch_of(store) == {"mean_epoch": 2.0}


def test_metric_object_that_is_no_single_number() -> None:
    """One that computes a vector is refused with its name; a collection is sent to log_dict."""
    store, cat = evaluation(), torchmetrics.CatMetric()
    cat.update(torch.tensor([1.0, 2.0]))
    log(store, "cat", cat)
    with pytest.raises(ValueError, match="'cat'"):
        epoch_of(store)
    with pytest.raises(ValueError, match="log_dict"):
        log(evaluation(), "all", torchmetrics.MetricCollection([torchmetrics.MeanMetric()]))


def test_metric_object_is_usable_after_inference_mode() -> None:
    """One that was reset while testing can be updated in training."""
    metric = torchmetrics.MeanMetric()
    with torch.inference_mode():
        store = evaluation()
        metric.update(1.0)
        log(store, "m", metric)
        assert epoch_of(store) == {"m": 1.0}
    metric.update(torch.tensor(3.0))
    assert metric.compute() == 3.0


class Holder(nn.Module):
    """Module that holds metric objects in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torchmetrics.MeanMetric()
        self.cat = torchmetrics.CatMetric()
        self.by_stage = nn.ModuleDict({"fit": torchmetrics.SumMetric()})
        self.group = torchmetrics.MetricCollection([BinaryPrecision(), BinaryRecall()])  # they share one state
        self.plain = {"mine": [Counter()], "other": 3}
        self.also = self.mean
        self.inner = nn.Sequential()
        self.inner.counter = Counter()  # type: ignore[assignment]

    def feed(self, value: float) -> None:
        self.mean.update(value, weight=0.1)
        self.cat.update(torch.tensor([value, value + 1]))
        self.by_stage["fit"].update(value)  # type: ignore[operator]
        self.group.update(torch.tensor([value > 1, True, True]).float(), torch.tensor([1, 1, 0]))
        self.plain["mine"][0].update(value)  # type: ignore[index]
        self.inner.counter.update(value)  # type: ignore[operator, union-attr]

    def read(self) -> list[Any]:
        found: list[Any] = [self.mean.compute(), self.cat.compute().tolist(), self.by_stage["fit"].compute()]  # type: ignore[operator]
        return [*found, dict(self.group.compute()), self.plain["mine"][0].compute(), self.inner.counter.compute()]  # type: ignore[index, operator, union-attr]


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6),
    st.lists(st.floats(-100, 100, width=32), max_size=4),
)
@settings(deadline=None, max_examples=15)
def test_metric_objects_go_on_to_the_bit(before: list[float], after: list[float]) -> None:
    """Their state, through a checkpoint's encoding and into new objects, gives what they would have given."""
    from lt_core.checkpoint.format.tree import clone

    old, new = Holder(), Holder()
    for value in before:
        old.feed(value)
    state = clone(collect(old))
    new.feed(55.0)
    restore(new, state)
    for value in after:
        old.feed(value)
        new.feed(value)
    assert repr(new.read()) == repr(old.read())


def test_collected_state_is_a_copy() -> None:
    """What was collected does not change when the metric sees more."""
    holder = Holder()
    holder.feed(1.0)
    state = collect(holder)
    expected = repr(holder.read())
    holder.feed(2.0)
    other = Holder()
    restore(other, state)
    other.feed(7.0)
    third = Holder()
    restore(third, state)
    assert repr(third.read()) == expected


def test_collected_state_is_up_to_date() -> None:
    """What a metric computed before it saw more is not what a checkpoint brings back, in a collection neither."""
    holder, other = Holder(), Holder()
    for value in (1.0, 2.0):
        holder.feed(value)
    holder.read()
    holder.feed(5.0)
    restore(other, collect(holder))
    assert repr(other.read()) == repr(holder.read())


def test_unknown_state_of_metric_objects_is_passed_over() -> None:
    """State of a metric that the module no longer has is no error, and others keep theirs."""
    holder = Holder()
    holder.feed(1.0)
    expected = repr(holder.read())
    restore(holder, {"gone": {"attributes": {"x": 1}}})
    assert repr(holder.read()) == expected


# ---------------------------------------------------------------- checkpoints

actions = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.floats(-1e3, 1e3, width=32), st.integers(1, 9)), max_size=80
)
FORMS: dict[str, dict[str, Any]] = {
    "a": {"on_step": True, "on_epoch": True},
    "b": {"on_step": False, "on_epoch": True, "reduce_fx": torch.sum, "prog_bar": True},
    "c": {"on_step": False, "on_epoch": True, "reduce_fx": min, "logger": False},
    "d": {},
}


def run(store: MetricStore, taken: list[tuple[str, float, int]]) -> None:
    for name, value, size in taken:
        store.batch, store.size = torch.zeros(size), None
        log(store, name, torch.tensor(value), **FORMS[name])


def everything(store: MetricStore) -> str:
    step = {k: float(v) for k, v in store.callback_metrics().items()}, store.take_step()
    return repr((step, epoch_of(store), store.epoch_metrics(), store.progress_bar_metrics()))


@given(actions, actions, st.booleans())
@settings(deadline=None, max_examples=60)
def test_state_goes_on_to_the_bit(before: Any, after: Any, takes: bool) -> None:
    """A store restored from its state inside an epoch, through JSON, ends the epoch as the one that never stopped."""
    whole, first, second = training(), training(), training()
    run(whole, before)
    run(first, before)
    if takes:
        assert whole.take_step() == first.take_step()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    run(whole, after)
    run(second, after)
    assert everything(second) == everything(whole)


def test_returned_values_go_on_after_a_resume() -> None:
    """What a step returns under "log" is logged after a resume as before it."""
    old, new = training(), training()
    old.add_returned({"log": {"a": 1.0}})
    new.load_state_dict(old.state_dict())
    new.take_step()
    new.add_returned({"log": {"a": 2.0}})
    assert new.take_step() == {"a": 2.0}


def test_restored_slot_is_as_strict() -> None:
    """After a resume a name with other arguments is refused as it would have been."""
    old, new = training(), training()
    log(old, "x", 1.0)
    new.load_state_dict(old.state_dict())
    with pytest.raises(MisconfigurationException, match="prog_bar"):
        log(new, "x", 1.0, prog_bar=True)
