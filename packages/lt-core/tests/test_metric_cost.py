"""Count what logging costs: calls, memory, and waiting for a device."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from stores import DEFAULTS, epoch_of, log, training


@pytest.mark.parametrize("batch", [torch.zeros(4, 2), [torch.zeros(4), torch.zeros(4, 1)], {"x": torch.zeros(4)}])
@pytest.mark.parametrize(
    "flags",
    [{}, {"on_step": False, "on_epoch": True}, {"on_epoch": True}, {"on_epoch": True, "batch_size": 3}]
    + [{"on_epoch": True, "reduce_fx": op, "prog_bar": True} for op in ("sum", "min", "max")],
)
@pytest.mark.parametrize("value", [1.0, torch.tensor(1.0)])
def test_a_value_costs_one_python_call(flags: dict[str, Any], batch: Any, value: Any) -> None:
    """Logging a number again is the one call of the store itself, however it is reduced, also first in a batch."""
    store, size = training(), flags.get("batch_size")
    options: Any = tuple({k: flags.get(k, default) for k, default in DEFAULTS.items()}.values())
    store.batch = batch
    store.add("x", value, options, size)
    store.add("x", value, options, size)
    store.size = None
    calls: list[str] = []
    sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name) if event == "call" else None)
    store.add("x", value, options, size)
    sys.setprofile(None)
    assert calls == ["add"]


def test_memory_does_not_grow_with_steps() -> None:
    """Ten thousand steps leave no more objects behind than a hundred."""
    import tracemalloc

    store, value = training(), torch.tensor(1.0)

    def steps(n: int) -> None:
        for _ in range(n):
            store.size = None
            for name in ("a", "b"):
                log(store, name, value, on_step=True, on_epoch=True)

    steps(100)
    tracemalloc.start()
    before = tracemalloc.take_snapshot()
    steps(10_000)
    grown = sum(s.size_diff for s in tracemalloc.take_snapshot().compare_to(before, "filename"))
    tracemalloc.stop()
    assert grown < 20_000


class Far(torch.Tensor):
    """Tensor that says it lies on an accelerator, and counts how often somebody waits for its value."""

    reads = 0

    is_cpu = False

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")

    def item(self) -> Any:
        Far.reads += 1
        return super().item()

    def tolist(self) -> Any:
        Far.reads += 1
        return super().tolist()


def far(value: float) -> torch.Tensor:
    return torch.tensor(value).as_subclass(Far)


def test_values_on_a_device_are_read_together() -> None:
    """Values on a device are read at once when a step is logged, and the results do not depend on when, or on where."""
    near, one, other = training(), training(), training()
    values = torch.randn(130, generator=torch.Generator().manual_seed(1)).tolist()
    flags = {"on_step": True, "on_epoch": True, "batch_size": 3}
    Far.reads = 0
    for value in values:
        log(near, "x", torch.tensor(value), **flags)
        log(one, "x", far(value), **flags)
    assert Far.reads == 0
    for i, value in enumerate(values):
        log(other, "x", far(value), **flags)
        if i % 7 == 0:
            other.take_step()
            other.state_dict()
    Far.reads = 0
    values_of_one = one.take_step()
    assert Far.reads == 1
    assert values_of_one == other.take_step() == near.take_step()
    assert epoch_of(one) == epoch_of(other) == epoch_of(near)


def test_values_on_a_device_are_snapshots_that_stay_there() -> None:
    """A tensor on a device is copied without waiting, changes in place do no harm, and callbacks get it unread."""
    store, value = training(), far(1.0)
    Far.reads = 0
    log(store, "x", value, on_step=True, on_epoch=True)
    value.fill_(9.0)
    seen = store.callback_metrics()["x"]
    assert (Far.reads, seen.device.type) == (0, "cuda")
    log(store, "x", 4.0, on_step=True, on_epoch=True)  # the host's value comes after
    assert store.take_step() == {"x_step": 4.0}
    assert epoch_of(store) == {"x_epoch": 2.5}
    with pytest.raises(ValueError, match="'y'"):
        log(store, "y", torch.zeros(2).as_subclass(Far))


def test_values_here_and_on_a_device_are_added_in_order() -> None:
    """What was logged first is added first, wherever it lies."""
    store = training()
    for value in (far(1e20), far(-1e20), 1.0):
        log(store, "x", value, on_step=False, on_epoch=True, reduce_fx="sum")
    assert epoch_of(store) == {"x": 1.0}
