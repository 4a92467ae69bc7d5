"""Engines of other kinds, in the ways of DeepSpeed, XLA and sharded models, pass the suite in the core's own loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor

from lt_core import LightningModule, Trainer
from lt_core.builtin.engine import PlainEngine
from lt_core.builtin.single_device import SingleDeviceStrategy
from lt_interface.testing import EngineConformance


class Wrapped(torch.optim.Optimizer):
    """Optimizer around another one, whose groups and state are its own; it counts what is asked of it.

    Args:
        inner: The user's optimizer.
    """

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, inner.defaults
        self.cleared = 0

    def step(self, closure: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        return self.inner.step(closure, **kwargs)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.cleared += 1
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


class WrappingEngine(PlainEngine):
    """Engine that owns nothing, over optimizers that it wraps."""

    def __init__(self, module: Any, optimizers: Sequence[Any], schedulers: Any, precision: Any, plan: Any) -> None:
        super().__init__(module, [Wrapped(o) for o in optimizers], schedulers, precision, plan)


class OwningEngine(PlainEngine):
    """Engine that divides, counts, clips, clears and schedules by itself, over wrapped optimizers: as DeepSpeed."""

    owns = frozenset({"accumulate", "clip", "zero_grad", "unscale", "schedule"})

    def __init__(self, module: Any, optimizers: Sequence[Any], schedulers: Any, precision: Any, plan: Any) -> None:
        super().__init__(module, [Wrapped(o) for o in optimizers], schedulers, precision, plan)
        self.plan, self.schedulers = plan, schedulers
        self.backward = self._divided  # type: ignore[method-assign]
        self.update = self._counted  # type: ignore[method-assign]

    def _divided(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        (loss / self.plan.accumulate).backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _counted(self, index: int, last: bool, closure: Any = None, **kwargs: Any) -> bool:
        if closure is not None:
            closure()
        if not last:
            return False
        if self.plan.clip_value:
            self.clip(index, self.plan.clip_value, self.plan.clip_algorithm)
        self.optimizers[index].step(**kwargs)
        self.optimizers[index].zero_grad()
        for scheduler in self.schedulers:
            scheduler.step()
        return True


class LazyEngine(PlainEngine):
    """Engine that computes nothing before a boundary, as XLA does: an update is queued, and True without a look."""

    def __init__(self, module: Any, optimizers: Sequence[Any], schedulers: Any, precision: Any, plan: Any) -> None:
        super().__init__(module, optimizers, schedulers, precision, plan)
        self.queue: list[Any] = []
        self.update = self._queued  # type: ignore[method-assign]
        self.boundary = self._run

    def _queued(self, index: int, last: bool, closure: Any = None, **kwargs: Any) -> bool:
        if closure is not None:
            return super().update(index, last, closure, **kwargs)
        self.queue.append(self.optimizers[index])
        return True

    def _run(self) -> None:
        for optimizer in self.queue:
            optimizer.step()
        self.queue.clear()


class WindowedEngine(PlainEngine):
    """Engine with a context around each batch and a call before each forward, as sharded models need."""

    def __init__(self, module: Any, optimizers: Sequence[Any], schedulers: Any, precision: Any, plan: Any) -> None:
        super().__init__(module, optimizers, schedulers, precision, plan)
        self.inside = self.gathered = False
        self.window = self._window
        self.before_forward = self._gather
        self.call = {name: self._asking(step) for name, step in self.call.items()}
        self.backward = self._inside  # type: ignore[method-assign]

    @contextmanager
    def _window(self, last: bool) -> Iterator[None]:
        assert not self.inside
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    def _gather(self) -> None:
        self.gathered = True

    def _asking(self, step: Any) -> Any:
        def asking(*args: Any) -> Any:
            assert self.gathered, "no call before the forward"
            self.gathered = False
            return step(*args)

        return asking

    def _inside(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        assert self.inside, "the backward pass lies outside of the window"
        loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]


class With(SingleDeviceStrategy):
    """Strategy of one device with an engine of another kind.

    Args:
        kind: The engine's class.
        collective_forward: What the strategy says of its forward.
    """

    def __init__(self, kind: type[PlainEngine], collective_forward: bool = False) -> None:
        super().__init__()
        self.kind, self.collective_forward = kind, collective_forward

    def engine(self, module: Any, optimizers: Any, schedulers: Any, precision: Any, plan: Any, default: Any) -> Any:
        return self.kind(module, optimizers, schedulers, precision, plan)


class TestPlainEngine(EngineConformance):
    plugin = "single_device"


class TestOwningEngine(EngineConformance):
    divides_short_windows = False

    def make(self) -> Any:
        return With(OwningEngine)


class TestWrappingEngine(EngineConformance):
    def make(self) -> Any:
        return With(WrappingEngine)


class TestLazyEngine(EngineConformance):
    def make(self) -> Any:
        return With(LazyEngine)


class TestWindowedEngine(EngineConformance):
    def make(self) -> Any:
        return With(WindowedEngine, collective_forward=True)


def _halved(self: Any, loss: Tensor, *args: Any, **kwargs: Any) -> None:
    (loss / 2).backward(*args, **kwargs)  # type: ignore[no-untyped-call]


def _broken(kind: type[PlainEngine], name: str, value: Any) -> Any:
    """Return a strategy whose engines have another attribute."""

    class Broken(With):
        def engine(self, *args: Any, **kwargs: Any) -> Any:
            engine = super().engine(*args, **kwargs)
            setattr(engine, name, value.__get__(engine) if hasattr(value, "__get__") else value)
            return engine

    return Broken(kind)


@pytest.mark.parametrize(
    ("kind", "test", "arguments", "name", "value"),
    [
        (PlainEngine, "test_trains_in_the_loop", ("plain",), "backward", _halved),
        (PlainEngine, "test_trains_in_the_loop", ("clip",), "clip", lambda self, index, value, algorithm: None),
        (PlainEngine, "test_trains_in_the_loop", ("window",), "owns", frozenset({"accumulate"})),
        (PlainEngine, "test_trains_in_the_loop", ("plain",), "owns", frozenset({"zero_grad"})),
        (PlainEngine, "test_trains_in_the_loop", ("plain",), "update", lambda self, index, last, closure=None: False),
        (OwningEngine, "test_trains_in_the_loop", ("window",), "owns", frozenset({"zero_grad"})),
        (OwningEngine, "test_trains_in_the_loop", ("clip",), "owns", OwningEngine.owns - {"clip"}),
        (OwningEngine, "test_trains_in_the_loop", ("scheduled",), "owns", OwningEngine.owns - {"schedule"}),
        (PlainEngine, "test_trains_in_the_loop", ("scheduled",), "owns", frozenset({"schedule"})),
        (OwningEngine, "test_clips_once", (), "owns", OwningEngine.owns - {"clip"}),
        (LazyEngine, "test_trains_in_the_loop", ("plain",), "boundary", None),
        (PlainEngine, "test_users_steps_go_through_the_engine", (), "update", lambda self, *args, **kwargs: False),
        (PlainEngine, "test_evaluation_goes_through_the_engine", ("validate",), "call", {}),
    ],
)
def test_broken_engines_are_caught(kind: Any, test: str, arguments: Any, name: str, value: Any) -> None:
    """Each rule for engines fails an engine that breaks it."""
    suite = type("TestBroken", (EngineConformance,), {"make": lambda self: _broken(kind, name, value)})()
    with pytest.raises((AssertionError, KeyError)):
        getattr(suite, test)(*arguments)


def test_an_engine_of_one_epoch_is_caught() -> None:
    """A strategy that shards its module anew with each engine fails the test of a second fit."""

    class Leaves(With):
        def release(self, module: Any, optimizers: Any) -> None:
            for name, p in list(module.layers[0].named_parameters()):
                del module.layers[0]._parameters[name]
                module.layers[0].register_parameter(name, type("Shard", (torch.nn.Parameter,), {})(p.data))

    suite = type("TestBroken", (EngineConformance,), {"make": lambda self: Leaves(PlainEngine)})()
    with pytest.raises(AssertionError):
        suite.test_fits_again()


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_accumulates_is_left_to_divide(stream: bool) -> None:
    """The loop scales no gradient of such an engine, also where an epoch ends inside a window of unknown length."""
    seen: list[float] = []

    class Net(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return (self.weight * batch).sum()

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            assert self.weight.grad is not None
            seen.append(self.weight.grad.item())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    batches = [torch.full((1,), float(number)) for number in (2, 4, 6)]
    trainer = Trainer(**{**QUIET, "strategy": With(OwningEngine), "max_epochs": 1, "accumulate_grad_batches": 2})
    trainer.fit(Net(), (lambda: iter(batches)) if stream else batches)
    assert seen == [3.0, 3.0]
