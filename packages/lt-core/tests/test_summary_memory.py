"""Estimate what training keeps in memory, and show it below the summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import nn

from lt_core import Trainer
from lt_core.callbacks import ModelSummary, RichModelSummary
from lt_core.demos import BoringModel
from lt_core.model.summary import estimate_memory

OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.Adam, {"fused": True}),
    (torch.optim.AdamW, {"amsgrad": True, "weight_decay": 0.1}),
    (torch.optim.RMSprop, {"centered": True}),
    (torch.optim.Adagrad, {}),
]


def layers() -> nn.Module:
    module = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.Linear(20, 1).half())
    module[0].bias.requires_grad_(False)
    return module


def size(tensors: Any) -> float:
    return sum(t.numel() * t.element_size() for t in tensors) * 1e-6


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=str)
def test_the_estimate_is_what_a_step_leaves(kind: Any, options: dict[str, Any]) -> None:
    """Parameters, buffers, gradients and optimizer states take what they take after a real step; no state is made."""
    module = layers()
    parameters = list(module.parameters())
    optimizer = kind([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.1}], lr=0.01, **options)
    before = len(optimizer.state)
    found = estimate_memory(module, [optimizer])
    assert len(optimizer.state) == before
    trained = [p for p in parameters if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    expected = [size(parameters), size(module.buffers()), size(trained), size(states)]
    assert list(found.values()) == pytest.approx([*expected, sum(expected)])


def test_what_cannot_be_known_is_shown_as_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an optimizer that needs more than gradients the states, and so the sum, are a question mark."""

    class Net(BoringModel):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters())

    found = estimate_memory(layers(), [torch.optim.LBFGS([nn.Parameter(torch.zeros(2))])])
    assert (found["Optimizer states"], found["All of these"]) == (None, None)
    flags = {**QUIET, "max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0, "enable_model_summary": True}
    Trainer(**flags, callbacks=[RichModelSummary()], default_root_dir=tmp_path).fit(Net())
    assert "?      Optimizer states in memory (MB)" in capsys.readouterr().out


def test_the_rich_summary_alone_shows_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RichModelSummary has FLOPs and memory; ModelSummary and a depth of 0 do not measure an optimizer."""

    class Net(BoringModel):
        example_input_array = torch.zeros(3, 32)

    texts = []
    for summary in (RichModelSummary(), ModelSummary(), RichModelSummary(max_depth=0)):
        flags = {**QUIET, "max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0}
        Trainer(**{**flags, "enable_model_summary": True}, callbacks=[summary], default_root_dir=tmp_path).fit(Net())
        texts.append(capsys.readouterr().out)
    lines = [f"{part} in memory (MB)" for part in ("Parameters", "Buffers", "Gradients", "Optimizer states")]
    assert all(line in texts[0] for line in [*lines, "All of these in memory (MB)", "Total FLOPs"])
    assert "384    Total FLOPs" in texts[0]
    assert "in memory" not in texts[1] + texts[2]
