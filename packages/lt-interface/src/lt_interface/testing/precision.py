"""Conformance suite of precisions."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest

from lt_interface.precision import Precision, TakesDevice
from lt_interface.registry import precisions
from lt_interface.testing.suite import Conformance

__all__ = ["PrecisionConformance"]


class PrecisionConformance(Conformance, suite=True):
    """Tests of a precision, which train a small network with it.

    Attributes:
        parameter_dtype: Name of the format that parameters have, such as ``"float32"``.
        tolerance: How far gradients and losses may lie from those in 64 bits, relatively.
        device: Where to compute.

    Example:
        ::

            class TestHalf(PrecisionConformance):
                plugin = "16-true"
                parameter_dtype = "float16"
                tolerance = 2e-2
    """

    registry = precisions
    parameter_dtype: ClassVar[str] = "float32"
    tolerance: ClassVar[float] = 1e-5
    device: ClassVar[str] = "cpu"

    @pytest.fixture
    def precision(self) -> Precision:
        """Return a new precision, as a run begins with it."""
        return self.begun()

    def begun(self) -> Precision:
        """Return a new precision that knows the device, where it takes one."""
        import torch

        made: Precision = self.make()
        if isinstance(made, TakesDevice):
            made.take_device(torch.device(self.device))
        return made

    def network(self) -> Any:
        """Return a small network with a normalisation, an integer buffer and a tied weight."""
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = nn.Linear(8, 16)
                self.norm = nn.LayerNorm(16)
                self.middle = nn.Linear(16, 16)
                self.tied = self.middle
                self.last = nn.Linear(16, 1)
                self.register_buffer("count", torch.zeros((), dtype=torch.int64))

            def forward(self, x: torch.Tensor) -> Any:
                hidden = torch.tanh(self.norm(self.first(x)))
                return self.last(torch.tanh(self.tied(torch.tanh(self.middle(hidden)))))

        torch.manual_seed(7)
        return Net().to(self.device)

    def batch(self) -> tuple[Any, Any]:
        """Return inputs and targets that a network can learn."""
        import torch

        generator = torch.Generator().manual_seed(11)
        x = torch.randn(64, 8, generator=generator)
        return x.to(self.device), (x[:, :1] - 0.5 * x[:, 1:2]).to(self.device)

    def loss(self, precision: Precision, net: Any) -> Any:
        """Return the loss of one forward pass as the core runs it.

        Args:
            precision: The precision under test.
            net: A network that it converted.
        """
        from torch.nn import functional

        x, y = precision.convert_batch(self.batch())
        with precision.forward() if precision.forward is not None else nullcontext():
            out = functional.mse_loss(net(x), y)
        return out if precision.convert_output is None else precision.convert_output(out)

    def train(self, precision: Precision, net: Any, optimizer: Any, steps: int) -> list[float]:
        """Train for some steps as the core runs them.

        Args:
            precision: The precision under test.
            net: A network that it converted.
            optimizer: An optimizer over its parameters.
            steps: How many steps.

        Returns:
            The loss of each step.
        """
        losses = []
        for _ in range(steps):
            loss = self.loss(precision, net)
            optimizer.zero_grad()
            precision.scale(loss).backward()  # type: ignore[no-untyped-call]
            precision.unscale(optimizer)
            precision.step(optimizer)
            losses.append(float(loss.detach()))
        return losses

    def reference_gradients(self) -> dict[str, Any]:
        """Return the gradients of the first step in 64 bits."""
        from torch.nn import functional

        net, (x, y) = self.network().double(), self.batch()
        functional.mse_loss(net(x.double()), y.double()).backward()  # type: ignore[no-untyped-call]
        return {name: p.grad for name, p in net.named_parameters()}

    def test_fills_the_protocol(self, precision: Precision) -> None:
        """It has every method and attribute, and the name it is registered under."""
        assert isinstance(precision, Precision)
        assert precision.forward is None or callable(precision.forward)
        assert precision.convert_output is None or callable(precision.convert_output)
        assert isinstance(precision.converts_batch, bool)
        assert isinstance(precision.scales, bool)
        assert isinstance(precision.name, str)
        if self.plugin:
            assert precision.name == self.plugin

    def test_computes_in_its_format(self, precision: Precision) -> None:
        """Layers compute in the format that the precision names, or in that of their parameters."""
        net = precision.convert(self.network())
        seen: set[Any] = set()
        net.get_submodule("middle").register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
        self.loss(precision, net)
        parameter = next(net.get_submodule("middle").parameters())
        assert seen == {parameter.dtype if precision.compute_dtype is None else precision.compute_dtype}

    def test_converts_parameters(self, precision: Precision) -> None:
        """Parameters get the format; names, ties, frozen ones and integer buffers stay."""
        import torch

        net = self.network()
        net.first.weight.requires_grad_(False)
        names, frozen = list(net.state_dict()), net.first.weight
        converted = precision.convert(net)
        assert converted is net, "a module is converted in place"
        assert list(converted.state_dict()) == names
        assert {p.dtype for p in converted.parameters()} == {getattr(torch, self.parameter_dtype)}
        assert converted.get_buffer("count").dtype == torch.int64
        assert converted.get_submodule("tied").weight is converted.get_submodule("middle").weight
        assert not converted.get_submodule("first").weight.requires_grad
        assert frozen.requires_grad is False

    def test_converts_batches(self, precision: Precision) -> None:
        """Only floating-point tensors of a batch change; structure, integers and other values stay."""
        import torch

        batch: dict[str, Any] = {
            "x": torch.ones(2),
            "n": [torch.tensor([1]), "text"],
            "pair": (torch.tensor(True), None, 3),
        }
        given = copy.deepcopy(batch)
        out = precision.convert_batch(batch)
        if not precision.converts_batch:
            assert out is batch
        assert list(out) == ["x", "n", "pair"]
        assert out["x"].is_floating_point()
        assert torch.equal(out["x"].float(), torch.ones(2))
        assert out["n"][0].dtype == torch.int64
        assert out["n"][1] == "text"
        assert isinstance(out["pair"], tuple)
        assert out["pair"][0].dtype == torch.bool
        assert out["pair"][1:] == (None, 3)
        assert batch["x"].dtype == given["x"].dtype, "the user's own batch must not change"

    def test_init_context_builds_the_format(self, precision: Precision) -> None:
        """A module constructed inside the context is already in the format."""
        import torch
        from torch import nn

        with precision.init_context():
            net = nn.Linear(2, 2)
        assert {p.dtype for p in precision.convert(net).parameters()} == {getattr(torch, self.parameter_dtype)}

    @pytest.mark.parametrize("place", ["init_context", "forward"])
    def test_contexts_leave_no_trace(self, precision: Precision, place: str) -> None:
        """Default format and autocast are as before, also after an exception, and the context can be made again."""
        import torch

        make: Callable[[], Any] | None = getattr(precision, place)
        kind = torch.device(self.device).type
        before = (torch.get_default_dtype(), torch.is_autocast_enabled(kind), torch.is_autocast_cache_enabled())
        for fails in (False, True, False):
            if make is None:
                break
            try:
                with make():
                    if fails:
                        raise KeyError
            except KeyError:
                pass
            after = (torch.get_default_dtype(), torch.is_autocast_enabled(kind), torch.is_autocast_cache_enabled())
            assert after == before

    def test_gradients_have_their_true_size(self, precision: Precision) -> None:
        """After unscale, once or twice, gradients equal those in 64 bits within the tolerance."""
        import torch

        net = precision.convert(self.network())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        precision.scale(self.loss(precision, net)).backward()  # type: ignore[no-untyped-call]
        precision.unscale(optimizer)
        precision.unscale(optimizer)
        for name, expected in self.reference_gradients().items():
            found = net.get_parameter(name).grad
            assert found is not None, name
            distance = (found.double() - expected).norm() / expected.norm()
            assert distance <= self.tolerance, f"{name}: gradients lie {distance:.2g} apart"
        precision.step(optimizer)

    def test_learns(self, precision: Precision) -> None:
        """The loss falls to less than a quarter in 60 steps."""
        import torch

        net = precision.convert(self.network())
        losses = self.train(precision, net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), 60)
        assert losses[-1] < losses[0] / 4

    def test_step_takes_a_closure(self, precision: Precision) -> None:
        """A closure that computes the gradients is called by the step, which reports that it stepped."""
        import torch

        net = precision.convert(self.network())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        before = net.get_parameter("first.weight").detach().clone()
        calls = []

        def closure() -> Any:
            optimizer.zero_grad()
            loss = self.loss(precision, net)
            precision.scale(loss).backward()  # type: ignore[no-untyped-call]
            calls.append(1)
            return loss

        assert precision.step(optimizer, closure) is True
        assert len(calls) == 1
        assert not torch.equal(net.get_parameter("first.weight"), before)

    def test_a_skipped_step_changes_nothing(self, precision: Precision) -> None:
        """A step with infinite gradients that reports False has left the weights alone."""
        import torch

        net = precision.convert(self.network())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        precision.scale(self.loss(precision, net) * torch.inf).backward()  # type: ignore[no-untyped-call]
        precision.unscale(optimizer)
        if not precision.step(optimizer):
            assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())

    def test_training_goes_on_after_a_skipped_step(self, precision: Precision) -> None:
        """Steps that were skipped leave no trace but a smaller scale: the next ones are made, and the loss falls."""
        import torch

        net = precision.convert(self.network())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        before = self.train(precision, net, optimizer, 1)
        for _ in range(2):
            optimizer.zero_grad()
            precision.scale(self.loss(precision, net) * torch.inf).backward()  # type: ignore[no-untyped-call]
            if precision.step(optimizer):
                pytest.skip("this precision skips no step")
        assert self.train(precision, net, optimizer, 30)[-1] < before[0]

    def test_a_step_without_gradients_is_made(self, precision: Precision) -> None:
        """A batch without a loss leaves no gradient; unscale and step then do nothing, and report no skip."""
        import torch

        net = precision.convert(self.network())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        precision.unscale(optimizer)
        assert precision.step(optimizer) is True
        assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
        assert len(self.train(precision, net, optimizer, 1)) == 1

    def test_an_optimizer_may_step_twice(self, precision: Precision) -> None:
        """A second step on the same gradients takes them in their true size, as the first did."""
        import torch

        net = precision.convert(self.network())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        precision.scale(self.loss(precision, net)).backward()  # type: ignore[no-untyped-call]
        weights = [net.get_parameter("first.weight").detach().clone()]
        for _ in range(2):
            assert precision.step(optimizer) is True
            weights.append(net.get_parameter("first.weight").detach().clone())
        first, second = (weights[1] - weights[0]).double(), (weights[2] - weights[1]).double()
        assert (first - second).norm() <= max(self.tolerance, 1e-3) * first.norm()

    def test_state_is_plain(self, precision: Precision) -> None:
        """A state holds numbers, text, tensors, and dicts and lists of them: what a checkpoint can hold."""
        import torch

        net = precision.convert(self.network())
        self.train(precision, net, torch.optim.SGD(net.parameters(), lr=0.1), 1)

        def plain(value: Any) -> bool:
            if isinstance(value, dict):
                return all(isinstance(key, str) and plain(item) for key, item in value.items())
            if isinstance(value, (list, tuple)):
                return all(map(plain, value))
            return value is None or isinstance(value, (bool, int, float, str, torch.Tensor))

        assert plain(precision.state_dict())

    def test_scale_is_a_factor(self, precision: Precision) -> None:
        """Scaling multiplies the loss by one positive number, and is the identity where ``scales`` is False."""
        import torch

        net = precision.convert(self.network())
        loss = self.loss(precision, net)
        scaled = precision.scale(loss)
        assert scaled.requires_grad
        assert float(scaled.detach()) / float(loss.detach()) > 0
        if not precision.scales:
            assert torch.equal(scaled.detach(), loss.detach())

    def test_step_passes_arguments(self, precision: Precision) -> None:
        """What the user gives to the optimizer's step reaches it."""
        import torch

        given: list[Any] = []

        class Asking(torch.optim.SGD):
            def step(self, closure: Any = None, *, speed: float = 1.0) -> Any:
                given.append(speed)
                return super().step(closure)

        net = precision.convert(self.network())
        optimizer = Asking(net.parameters(), lr=0.1)
        precision.scale(self.loss(precision, net)).backward()  # type: ignore[no-untyped-call]
        assert precision.step(optimizer, speed=2.0) is True
        assert given == [2.0]

    def test_problems_are_listed(self, precision: Precision) -> None:
        """A plan is asked about without touching a device; a precision of this device has no problem with it."""
        import torch

        from lt_interface.plan import Plan

        kind = torch.device(self.device).type
        plan = Plan(precision=precision.name, accelerator="cpu" if kind == "cpu" else "gpu", device_type=kind)
        assert list(precision.problems(plan)) == []

    def test_resumes_to_the_bit(self, precision: Precision) -> None:
        """A new instance that takes over the state continues exactly as the old one."""
        import torch

        net = precision.convert(self.network())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        self.train(precision, net, optimizer, 3)
        saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), precision.state_dict()))
        expected = self.train(precision, net, optimizer, 3)
        other = self.begun()
        again = other.convert(self.network())
        restored = torch.optim.SGD(again.parameters(), lr=0.1, momentum=0.9)
        again.load_state_dict(saved[0])
        restored.load_state_dict(saved[1])
        other.load_state_dict(saved[2])
        assert self.train(other, again, restored, 3) == expected
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), net.parameters(), strict=True))

    def test_accepts_an_empty_state(self, precision: Precision) -> None:
        """A checkpoint of a run without such a state can be loaded."""
        precision.load_state_dict({})
        assert isinstance(precision.state_dict(), dict)

    def test_pickles(self, precision: Precision) -> None:
        """It reaches a spawned process and works there."""
        again = pickle.loads(pickle.dumps(precision))
        net = again.convert(self.network())
        assert float(self.loss(again, net).detach()) == float(self.loss(precision, net).detach())
