"""What ranks exchange, over the backend of a device, in a world of one: nccl on a card."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import nn

import lt_accel.group
from lt_accel.collectives import ProcessGroupCollectives
from lt_accel.group import join, leave
from lt_accel.strategies.ddp import DDPStrategy
from lt_accel.strategies.options import backend_of
from lt_accel.strategies.reducer import GradientExchange
from lt_accel.strategies.same import copy_from_first
from lt_interface import World
from lt_interface.testing.ranks import free_port

NO_CARD = torch.version.cuda is None or torch.cuda.device_count() == 0
CARD = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(NO_CARD, reason="no CUDA device here")])


@pytest.fixture(params=["cpu", CARD])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def collectives(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessGroupCollectives]:
    # Forks of this process would take its store for theirs.
    monkeypatch.setattr(lt_accel.group, "_joined", lt_accel.group._Joined())
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    made = ProcessGroupCollectives(join(World(), None, timedelta(seconds=60), backend_of(None, device.type)))
    yield made
    made.close()
    leave()


def test_values_are_exchanged(collectives: ProcessGroupCollectives, device: torch.device) -> None:
    """Every collective gives back what the only rank gave, in any format, on the device."""
    for format in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        given = torch.tensor([1, 0, 1], device=device).to(format)
        (found,) = collectives.all_gather(given)
        assert (found.device.type, found.dtype) == (device.type, format)
        assert torch.equal(found, given)
    assert collectives.reduce(torch.tensor(2.0, device=device), "sum") == 2
    assert collectives.broadcast_object({"a": 1}) == {"a": 1}
    assert collectives.gather_object({"a": 1}) == [{"a": 1}]
    collectives.barrier("here")


def test_gradients_are_exchanged(collectives: ProcessGroupCollectives, device: torch.device) -> None:
    """Gradients that torch's reducer has exchanged are those of a plain backward pass, over several steps."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1)).to(device)
    plain = deepcopy(net)
    copy_from_first([*net.parameters(), *net.buffers()])
    strategy = DDPStrategy()
    strategy.device, strategy.collectives = device, collectives
    exchange = GradientExchange(net, strategy, several=False)
    for seed in range(3):
        batch = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)).to(device)
        net.zero_grad()
        plain.zero_grad()
        loss = net(batch).square().mean()
        exchange.prepare(loss)
        loss.backward()
        exchange.finish()
        plain(batch).square().mean().backward()
        for one, other in zip(net.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
    exchange.close()
