"""What the tests of callbacks that change weights train on, and what they compare."""

from __future__ import annotations

import torch
from torch import nn

BATCHES = list(torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(1)))


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    """Compare the weights and buffers of two modules, to the bit."""
    states = one.state_dict(), other.state_dict()
    assert set(states[0]) == set(states[1])
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
