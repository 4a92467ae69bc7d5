"""What a fit says at its start on how its optimizer is built, with what that costs a step."""

from __future__ import annotations

import copy
import random
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from lt_core import LightningModule, Trainer
from lt_core.optim import ByRule, Rule, merge_groups
from lt_core.optim.price import price

SHOWN = {**QUIET, "enable_progress_bar": True, "max_steps": 1}


class Net(LightningModule):
    """Network of many small layers.

    Args:
        optimizer: Makes the optimizer from the module.
        layers: How many.
    """

    def __init__(self, optimizer: Any, layers: int = 150) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
        self.optimizer = optimizer

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self.layers(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return self.optimizer(self)


def each(net: nn.Module, **options: Any) -> Any:
    """Return AdamW with a group for each parameter."""
    return AdamW([{"params": [p]} for p in net.parameters()], **options)


def said(net: Net, caplog: pytest.LogCaptureFixture, **flags: Any) -> list[str]:
    """Return the lines of a fit that price its optimizers."""
    caplog.clear()
    with caplog.at_level("INFO", "lt_core"):
        Trainer(**{**SHOWN, **flags}).fit(net, DataLoader(torch.ones(4, 4)))  # type: ignore[arg-type]
    return [line for line in caplog.messages if "as measured here" in line]


PRICED: dict[str, tuple[Any, str]] = {
    "not fused": (
        lambda net: AdamW(net.parameters()),
        r"its 300 tensors .* with fused=True: .* Write: AdamW\(\.\.\., f",
    ),
    "groups": (partial(each, fused=True), r"with its 300 parameter groups joined .*merge_groups\(AdamW\(\.\.\.\)\)"),
    "both": (each, r"groups joined .* and fused=True.*merge_groups\(AdamW\(\.\.\., fused=True\)\)\."),
    "one of two": (lambda net: AdamW(net.parameters(), foreach=False), r"AdamW\(\.\.\., fused=True\)"),
    "a part": (
        lambda net: ByRule(net, [Rule(dims=2, optimizer=partial(SGD, fused=True))], AdamW),
        "AdamW: a step of its 150",
    ),
}


@pytest.mark.parametrize("case", PRICED)
def test_a_fit_says_what_its_optimizer_costs(case: str, caplog: pytest.LogCaptureFixture) -> None:
    """One line has the time of a step as it is and as it could be, and what to write."""
    make, pattern = PRICED[case]
    (line,) = said(Net(make), caplog)
    assert re.search(pattern, line), line
    before, after = (float(word) for word in re.findall(r"([\d.]+) ms", line))
    assert before > 1.4 * after


SILENT_CASES: dict[str, Any] = {
    "fused": lambda net: AdamW(net.parameters(), fused=True),
    "foreach": lambda net: AdamW(net.parameters(), foreach=True),
    "switched off": lambda net: AdamW(net.parameters(), fused=False, foreach=False),
    "joined": lambda net: merge_groups(each(net, fused=True)),
    "different": lambda net: AdamW(
        [{"params": [p], "lr": 1 / i} for i, p in enumerate(net.parameters(), 1)], fused=True
    ),
    "none": lambda net: None,
}


@pytest.mark.filterwarnings("ignore:.*this fit will run with no optimizer")
@pytest.mark.parametrize("case", SILENT_CASES)
def test_an_optimizer_that_is_fine_is_not_mentioned(case: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is said where a form is used or switched off, or groups differ."""
    assert said(Net(SILENT_CASES[case]), caplog) == []


def test_small_models_and_quiet_fits_are_not_priced(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is measured where there is little to gain, nor where no bar is shown."""
    assert said(Net(lambda net: AdamW(net.parameters()), layers=20), caplog) == []
    assert said(Net(lambda net: AdamW(net.parameters())), caplog, enable_progress_bar=False) == []


def test_sparse_gradients_and_own_steps_are_left_alone() -> None:
    """No form is advised for sparse gradients, for a step that a subclass writes itself, or for foreign optimizers."""

    class Own(AdamW):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            return super().step(closure)

    class Plain(AdamW):
        pass

    net = Net(None)
    assert price(Own(net.parameters()), net) is None
    assert price(Plain(net.parameters()), net) is not None
    sparse = nn.ModuleList([*net.layers, nn.Embedding(2, 2, sparse=True)])
    assert price(SGD(net.parameters(), lr=0.1, momentum=0.9), sparse) is None
    assert price(AdamW(net.parameters(), differentiable=True), net) is None
    assert price(torch.optim.LBFGS(net.parameters()), net) is None
    assert price(object(), net) is None


def test_measuring_touches_nothing_of_the_users() -> None:
    """Parameters, gradients, states, options and random generators stay, and hooks on optimizers do not fire."""
    net = Net(None)
    optimizer = each(net)
    net.training_step(torch.ones(1, 4), 0).backward()
    optimizer.step()
    before = copy.deepcopy((net.state_dict(), [p.grad for p in net.parameters()], optimizer.state_dict()))
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    fired: list[Any] = []
    handle = register_optimizer_step_pre_hook(lambda *args: fired.append(args))
    try:
        assert price(optimizer, net) is not None
    finally:
        handle.remove()
    after = (net.state_dict(), [p.grad for p in net.parameters()], optimizer.state_dict())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert not fired
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.array_equal(np.random.get_state()[1], generators[2])


def test_where_there_is_no_fused_form_the_other_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer without a fused form is advised to use foreach, where that is faster."""
    monkeypatch.setattr("lt_core.optim.price._RATIO", 1.2)
    net = Net(None)
    assert "Write: RMSprop(..., foreach=True)." in str(price(torch.optim.RMSprop(net.parameters()), net))


def test_large_tensors_are_measured_smaller() -> None:
    """Memory stays bounded: the line says on which size it measured."""
    net = nn.ParameterList([nn.Parameter(torch.empty(1, device="cpu").expand(4000, 4000)) for _ in range(200)])
    text = price(AdamW(net.parameters()), net)
    assert text is not None
    assert "on tensors of at most 10,485 elements" in text
