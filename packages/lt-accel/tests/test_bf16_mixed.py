"""bf16-mixed computes in 16 bits, keeps weights in 32 and loses no gradient."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from lt_accel import BFloat16MixedPrecision
from lt_accel.precision import mixed
from lt_interface.registry import precisions
from lt_interface.testing import PrecisionConformance


class TestBFloat16Mixed(PrecisionConformance):
    plugin = "bf16-mixed"
    parameter_dtype = "float32"
    tolerance = 5e-2


class TestWithoutCache(PrecisionConformance):
    """The rules hold too where this version of torch has no safe cache."""

    plugin = "bf16-mixed"
    tolerance = 5e-2

    @pytest.fixture(autouse=True)
    def unsafe_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mixed, "_cache_keeps_gradients", lambda: False)


@pytest.fixture(params=[True, False], ids=["cache", "no-cache"])
def cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run with the cache of cast weights on, where this torch has a safe one, and off."""
    enabled = bool(request.param)
    if enabled and not mixed._cache_keeps_gradients():
        pytest.skip("this version of torch has no safe cache")
    monkeypatch.setattr(mixed, "_cache_keeps_gradients", lambda: enabled)
    return enabled


def test_found_through_its_entry_point() -> None:
    """The registry gives the public class under its name."""
    assert precisions.get("bf16-mixed") is BFloat16MixedPrecision


def test_computes_in_16_bits_where_it_is_safe() -> None:
    """Products are bfloat16, losses and reductions 32 bits, outside everything is 32 bits."""
    precision = BFloat16MixedPrecision()
    net = precision.convert(nn.Linear(4, 4))
    x = torch.randn(2, 4)
    with precision.forward():
        out = net(x)
        loss = functional.mse_loss(out, torch.zeros(2, 4))
    assert out.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert net(x).dtype == torch.float32
    loss.backward()
    assert net.weight.grad is not None
    assert net.weight.grad.dtype == torch.float32


def test_equals_plain_autocast(cache: bool) -> None:
    """Ten steps give bit for bit the weights of a hand-written autocast loop."""

    def train(precision: BFloat16MixedPrecision | None) -> Any:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 1))
        if precision is not None:
            precision.convert(net)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        for _ in range(10):
            x = torch.randn(16, 8)
            with precision.forward() if precision is not None else torch.autocast("cpu", dtype=torch.bfloat16):
                loss = functional.mse_loss(net(x), x.sum(1, keepdim=True))
            optimizer.zero_grad()
            if precision is not None:
                precision.scale(loss).backward()
                assert precision.step(optimizer)
            else:
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return net.state_dict()

    ours, plain = train(BFloat16MixedPrecision()), train(None)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_lost_after_no_grad(cache: bool, mode: Any) -> None:
    """A weight first used without gradients inside a step still gets its gradient from a later use."""
    precision = BFloat16MixedPrecision()
    net = precision.convert(nn.Linear(4, 1))
    x = torch.randn(8, 4)
    with precision.forward():
        with mode():
            net(x)
        loss = net(x).float().pow(2).mean()
    precision.scale(loss).backward()
    assert net.weight.grad is not None
    assert float(net.weight.grad.abs().sum()) > 0


def test_weights_are_cast_anew_after_a_step(cache: bool) -> None:
    """The step after an optimizer step sees the new weights."""
    precision = BFloat16MixedPrecision()
    net = precision.convert(nn.Linear(4, 1, bias=False))
    x = torch.ones(1, 4)
    with precision.forward():
        before = net(x).item()
    with torch.no_grad():
        net.weight.add_(1.0)
    with precision.forward():
        assert net(x).item() == pytest.approx(before + 4.0, abs=0.05)


def test_the_probe_works_in_any_mode() -> None:
    """Asking whether the cache is safe gives one answer in every gradient mode and draws no random number."""
    answers = set()
    state = torch.get_rng_state()
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        mixed._cache_keeps_gradients.cache_clear()
        with mode():
            answers.add(mixed._cache_keeps_gradients())
    assert len(answers) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_device_is_the_runs() -> None:
    """The device is the run's unless one is named, wherever the parameters lie, and travels with the precision."""
    assert BFloat16MixedPrecision("cuda:1").device_type == "cuda"
    precision = BFloat16MixedPrecision()
    precision.take_device(torch.device("cuda:1"))
    precision.convert(nn.Linear(1, 1))
    assert precision.device_type == "cuda"
    assert pickle.loads(pickle.dumps(precision)).device_type == "cuda"
    precision.take_device(torch.device("cpu"))
    assert precision.device_type == "cpu"
