"""The loop keeps its side of the engine's and the precision's contract, whatever the engine owns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional

from lt_core import LightningModule, Trainer
from lt_core.builtin.engine import PlainEngine
from lt_core.builtin.precision import BFloat16Precision, DoublePrecision, FullPrecision
from lt_core.builtin.single_device import SingleDeviceStrategy
from lt_interface import PlainPrecision

BATCHES = [(x, x.sum(1, keepdim=True)) for x in torch.randn(6, 8, 3, generator=torch.Generator().manual_seed(3))]


class Net(LightningModule):
    """Small network whose layer notes the format that it computes in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3, 1)
        self.formats: set[torch.dtype] = set()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        self.formats.add(out.dtype)
        return out

    def loss(self, batch: Any) -> Tensor:
        return functional.mse_loss(self(batch[0]).float(), batch[1].float())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Scaled(PlainPrecision):
    """Precision of 32 bits that multiplies the loss by 1024."""

    name = "32-scaled"
    scales = True

    def __init__(self) -> None:
        self.unscaled = False

    def scale(self, loss: Tensor) -> Tensor:
        return loss * 1024

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        if self.unscaled:
            return
        self.unscaled = True
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.div_(1024)

    def step(self, optimizer: torch.optim.Optimizer, closure: Any = None, **kwargs: Any) -> bool:
        if closure is not None:
            loss = closure()
            self.unscale(optimizer)
            optimizer.step(lambda: loss, **kwargs)
        else:
            self.unscale(optimizer)
            optimizer.step(**kwargs)
        self.unscaled = False
        return True


class Recording(PlainEngine):
    """Engine that notes its calls, and does itself what ``owns`` names."""

    calls: list[str]

    def watch(self, calls: list[str], owns: frozenset[str], accumulate: int) -> Recording:
        """Note calls from now on.

        Args:
            calls: The notes.
            owns: What this engine owns.
            accumulate: Batches a window.
        """
        self.calls, self.owns, self.length, self.seen = calls, owns, accumulate, 0
        self.window = self._window  # type: ignore[assignment]
        self.before_forward = lambda: calls.append("before")
        self.boundary = lambda: calls.append("boundary")
        self.call = {name: self._noting(name, step) for name, step in self.call.items()}
        self.update = self._update  # type: ignore[method-assign]
        self.backward = self._backward  # type: ignore[method-assign]
        return self

    def _noting(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any) -> Any:
            self.calls.append(name)
            return step(*args)

        return noting

    @contextmanager
    def _window(self, last: bool) -> Iterator[None]:
        self.calls.append("window last" if last else "window")
        yield
        self.calls.append("window ends")

    def _backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.calls.append("backward")
        if "accumulate" in self.owns:
            loss = loss / self.length
        self.precision.scale(loss).backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _update(self, index: int, last: bool, closure: Any = None, **kwargs: Any) -> bool:
        self.calls.append("update last" if last else "update")
        optimizer = self.optimizers[index]
        if "accumulate" in self.owns and not last:
            return False
        stepped = self.precision.step(optimizer, closure, **kwargs)
        if "zero_grad" in self.owns:
            optimizer.zero_grad()
        return stepped

    def close(self) -> None:
        self.calls.append("close")


class Recorded(SingleDeviceStrategy):
    """Strategy of one device with a recording engine."""

    name = "recorded"

    def __init__(self, *owns: str) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.owns = frozenset(owns)
        self.engines = 0

    def engine(self, module: Any, optimizers: Any, schedulers: Any, precision: Any, plan: Any, default: Any) -> Any:
        self.engines += 1
        engine = Recording(module, optimizers, schedulers, precision, plan)
        return engine.watch(self.calls, self.owns, plan.accumulate)


def fit(net: LightningModule, batches: Any = BATCHES, **flags: Any) -> Trainer:
    trainer = Trainer(**{**QUIET, "max_epochs": 1, "limit_val_batches": 0, **flags})
    trainer.fit(net, batches)
    return trainer


def by_hand(accumulate: int = 1, batches: Any = BATCHES) -> dict[str, Tensor]:
    """Return the weights of a loop that divides each loss by the length of its window."""
    net = Net()
    optimizer = net.configure_optimizers()
    for start in range(0, len(batches), accumulate):
        window = batches[start : start + accumulate]
        optimizer.zero_grad()
        for batch in window:
            (net.loss(batch) / len(window)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return dict(net.state_dict())


def assert_same(net: nn.Module, weights: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("precision", [FullPrecision, DoublePrecision, BFloat16Precision])
@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_steps_run_inside_the_precision(precision: Any, compiled: bool) -> None:
    """A module that torch.compile wraps computes in the trainer's format, as an eager one does."""
    net = Net()
    given: Any = torch.compile(net, backend="eager") if compiled else net
    fit(given, precision=precision())
    eager = Net()
    fit(eager, precision=precision())
    assert_same(net, dict(eager.state_dict()))


class AutocastPrecision(PlainPrecision):
    """Precision that computes in bfloat16 inside its context alone."""

    name = "autocast"

    def forward(self) -> Any:  # type: ignore[override]
        return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_steps_run_inside_a_forward_context(compiled: bool) -> None:
    """The precision's context lies around a compiled step too, so that it does not fall back to 32 bits."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    net = Net()
    fit(torch.compile(net, backend=backend) if compiled else net, precision=AutocastPrecision())  # type: ignore[arg-type]
    assert net.formats == {torch.bfloat16}
    assert bool(graphs) is compiled


@pytest.mark.parametrize(
    ("accumulate", "owns"),
    [
        *((n, owns) for n in (1, 2, 3) for owns in ((), ("accumulate",), ("accumulate", "zero_grad"), ("zero_grad",))),
        (4, ()),  # the last window is short: an engine that accumulates by itself divides by the full length
        (4, ("zero_grad",)),
    ],
)
def test_every_engine_gets_the_same_weights(accumulate: int, owns: tuple[str, ...]) -> None:
    """Whatever an engine owns, a short last window included, weights equal the hand-written loop's bit for bit."""
    net, strategy = Net(), Recorded(*owns)
    trainer = fit(net, strategy=strategy, accumulate_grad_batches=accumulate)
    assert trainer.global_step == -(-len(BATCHES) // accumulate)
    assert_same(net, by_hand(accumulate))


def test_forward_and_backward_lie_in_one_window() -> None:
    """The engine's context holds forward and backward of each batch, and says which batch closes the window."""
    strategy = Recorded()
    fit(Net(), BATCHES[:3], strategy=strategy, accumulate_grad_batches=2)
    inside = ["before", "training_step", "backward", "window ends"]
    opened = ["window", *inside, "boundary"]
    closed = ["window last", *inside, "update last", "boundary"]
    assert strategy.calls == [*opened, *closed, *closed, "close"]


def test_evaluation_has_boundaries() -> None:
    """Each batch of validation and prediction ends with the engine's boundary, and begins with its call before it."""
    strategy = Recorded()
    trainer = Trainer(**QUIET, max_epochs=1, strategy=strategy)
    trainer.validate(Net(), BATCHES[:2], verbose=False)
    assert strategy.calls == ["before", "validation_step", "boundary"] * 2 + ["close"]
    strategy.calls.clear()
    trainer.predict(Net(), BATCHES[:2])
    assert strategy.calls == ["before", "predict_step", "boundary"] * 2 + ["close"]


class OwnBackward(Net):
    """Network with a backward of its own."""

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.seen = float(loss.detach())
        loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]


class Manual(Net):
    """Network that steps by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


class ManualOwnBackward(Manual, OwnBackward):
    """Network that steps by hand, with a backward of its own."""


class Closure(Net):
    """Network whose optimizer_step is overridden."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)


class ClosureOwnBackward(Closure, OwnBackward):
    """Network whose optimizer_step and backward are overridden."""


@pytest.mark.parametrize("kind", [Net, Closure])
def test_an_engine_that_accumulates_is_updated_for_each_batch(kind: type[Net]) -> None:
    """An engine that owns accumulation gets each batch, undivided, with the mark of the window's last."""
    strategy = Recorded("accumulate")
    trainer = fit(kind(), BATCHES[:4], strategy=strategy, accumulate_grad_batches=2)
    updates = [call for call in strategy.calls if call.startswith("update")]
    assert updates == ["update", "update last"] * 2
    assert trainer.global_step == 2


@pytest.mark.parametrize("kind", [Net, OwnBackward, Manual, ManualOwnBackward, Closure, ClosureOwnBackward])
def test_the_loss_scale_reaches_every_backward(kind: type[Net]) -> None:
    """With a loss scale each form of the step trains as without, an overridden backward included."""
    net, plain = kind(), kind()
    fit(net, precision=Scaled())
    fit(plain)
    assert_same(net, dict(plain.state_dict()))
    if isinstance(net, OwnBackward):
        assert net.seen == pytest.approx(1024 * plain.seen)  # type: ignore[attr-defined]


def test_an_engine_that_runs_backward_itself_is_not_overridden() -> None:
    """Where the engine owns the backward pass, the module's override is left out, with one warning."""
    net = OwnBackward()
    with pytest.warns(UserWarning, match="OwnBackward.backward: the engine"):
        fit(net, strategy=Recorded("backward"))
    assert not hasattr(net, "seen")
    assert_same(net, by_hand())


class Asking(torch.optim.SGD):
    """Optimizer whose step takes an argument."""

    def step(self, closure: Any = None, *, note: Any = None) -> Any:  # type: ignore[override]
        if note is not None:
            note.append([None if p.grad is None else p.grad.clone() for p in self.param_groups[0]["params"]])
        return super().step(closure)


@pytest.mark.parametrize("precision", [Scaled, FullPrecision])
def test_arguments_of_step_go_through_the_precision(precision: Any) -> None:
    """What is given to optimizer.step reaches the optimizer, behind the precision: gradients have their true size."""
    notes: list[Any] = []

    class Noting(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step(note=notes)

        def configure_optimizers(self) -> Any:
            return Asking(self.parameters(), lr=0.1, momentum=0.9)

    net = Noting()
    trainer = fit(net, precision=precision())
    assert trainer.global_step == len(notes) == 6
    assert max(float(g.abs().max()) for g in notes[0]) < 100
    assert_same(net, by_hand())


class Wrapped(torch.optim.Optimizer):
    """Optimizer around another one, as engines make them."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, inner.defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.inner.step(closure)


class Wraps(Recorded):
    """Strategy whose engine wraps the optimizers."""

    def engine(self, module: Any, optimizers: Any, schedulers: Any, precision: Any, plan: Any, default: Any) -> Any:
        wrapped = [Wrapped(o) for o in optimizers]
        return super().engine(module, wrapped, schedulers, precision, plan, default)


def test_an_engine_that_wraps_optimizers_is_built_once() -> None:
    """Three epochs with nothing changed use one engine, though its optimizers are not the user's objects."""
    strategy = Wraps()
    fit(Net(), strategy=strategy, max_epochs=3)
    assert strategy.engines == 1
    assert strategy.calls.count("close") == 1


class Flat(Wrapped):
    """Optimizer that keeps a list of what its groups hold when it is made, as engines that flatten them do."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner)
        self.held = [p for group in inner.param_groups for p in group["params"]]
        inner.param_groups[0]["params"] = [*inner.param_groups[0]["params"]]

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        assert self.held == [p for group in self.inner.param_groups for p in group["params"]]
        return super().step(closure)


class Flattens(Recorded):
    """Strategy whose engine looks at the optimizers' groups once, when it is built."""

    def engine(self, module: Any, optimizers: Any, schedulers: Any, precision: Any, plan: Any, default: Any) -> Any:
        return super().engine(module, [Flat(o) for o in optimizers], schedulers, precision, plan, default)


def test_a_group_added_in_a_fit_reaches_the_engine() -> None:
    """An engine that looks at the optimizers' groups when it is built is built anew once one is added."""

    class Adds(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([self.layer.weight], lr=0.1)

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.trainer.optimizers[0].add_param_group({"params": [self.layer.bias], "lr": 0.01})

    strategy, net = Flattens(), Adds()
    before = net.layer.bias.detach().clone()
    with pytest.warns(UserWarning, match="no optimizer holds these trainable parameters: layer.bias"):
        fit(net, strategy=strategy, max_epochs=3)
    assert strategy.engines == 2
    assert not torch.equal(net.layer.bias, before)


def test_unfreezing_builds_the_engine_anew() -> None:
    """Parameters that begin to require gradients between epochs get a new engine; the old one is closed."""

    class Unfreezes(Net):
        def on_train_epoch_start(self) -> None:
            self.layer.bias.requires_grad_(self.current_epoch == 1)

    strategy = Recorded()
    fit(Unfreezes(), strategy=strategy, max_epochs=3)
    assert strategy.engines == 3 + 1  # before the first epoch all is trainable
    assert strategy.calls.count("close") == 4


def test_the_straight_step_is_the_window_step() -> None:
    """The straight line for ordinary engines calls hooks and trains exactly as the general form does."""

    class Noting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[str] = []

        def on_before_zero_grad(self, optimizer: Any) -> None:
            self.calls.append("zero_grad")

        def on_before_backward(self, loss: Tensor) -> None:
            self.calls.append(f"before {float(loss.detach())}")

        def on_after_backward(self) -> None:
            self.calls.append("after")

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.calls.append("step")

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.calls.append(f"end {outputs['loss']}")

    straight, general = Noting(), Noting()
    fit(straight, gradient_clip_val=0.1)
    fit(general, gradient_clip_val=0.1, strategy=Recorded())
    assert straight.calls == general.calls
    assert_same(straight, dict(general.state_dict()))


def test_the_module_sees_the_strategys_mesh() -> None:
    """self.device_mesh is the strategy's from configure_model on, and None under a strategy without one."""

    class Meshed(SingleDeviceStrategy):
        mesh = "a mesh of devices"  # type: ignore[assignment]

    class Looks(Net):
        def configure_model(self) -> None:
            self.seen = self.device_mesh

    meshed, plain = Looks(), Looks()
    fit(meshed, strategy=Meshed())
    fit(plain)
    assert (meshed.seen, plain.seen) == ("a mesh of devices", None)
