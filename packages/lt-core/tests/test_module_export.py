"""Export of a module's forward."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lt_core.demos import BoringModel
from lt_core.module import LightningModule
from lt_interface.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")


class Two(LightningModule):
    """Module that takes two arguments and behaves differently in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.drop = nn.Dropout(0.9)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.drop(self.layer(x)) + y
        return out


class Holder:
    """Stand-in for a trainer."""


def test_torchscript_script(tmp_path: Path) -> None:
    """Scripting an attached module in training mode gives its evaluation forward, and saves it."""
    model = BoringModel()
    holder = Holder()
    model.trainer = holder  # type: ignore[assignment]
    model.layer.eval()
    file = tmp_path / "model.pt"
    scripted = model.to_torchscript(file)
    x = torch.ones(2, 32)
    assert torch.equal(scripted(x), model(x))
    assert torch.equal(torch.jit.load(str(file))(x), model(x))  # type: ignore[no-untyped-call]
    assert model.training
    assert not model.layer.training
    del holder


@pytest.mark.parametrize("as_dict", [False, True])
def test_torchscript_trace(as_dict: bool) -> None:
    """Tracing takes a tuple or a dict of arguments, given or from example_input_array."""
    model = Two()
    inputs = (torch.ones(1, 3), torch.ones(1, 2))
    model.example_input_array = {"x": inputs[0], "y": inputs[1]} if as_dict else inputs
    traced = model.to_torchscript(method="trace")
    model.eval()
    assert torch.equal(traced(*inputs), model(*inputs))


def test_torchscript_errors() -> None:
    """An unknown method and a trace without input are refused with what to do."""
    with pytest.raises(ConfigError, match=r'must be "script" or "trace"\. Did you mean "script"'):
        BoringModel().to_torchscript(method="scrip")
    with pytest.raises(ConfigError, match="example_input_array"):
        BoringModel().to_torchscript(method="trace")


def test_onnx_passes_the_sample_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """to_onnx exports in evaluation mode, without gradients, with the sample as arguments."""
    seen: dict[str, Any] = {}

    def export(model: Any, args: Any, target: Any, **kwargs: Any) -> str:
        seen.update(training=model.training, grad=torch.is_grad_enabled(), args=args, target=target, kwargs=kwargs)
        return "program"

    monkeypatch.setattr(torch.onnx, "export", export)
    model = BoringModel()
    x = torch.ones(1, 32)
    assert model.to_onnx(tmp_path / "m.onnx", x, dynamo=True) == "program"
    assert (seen["training"], seen["grad"], seen["target"]) == (False, False, str(tmp_path / "m.onnx"))
    assert seen["args"] == (x,)
    assert seen["kwargs"] == {"dynamo": True}
    assert model.training
    model.example_input_array = {"x": x}
    model.to_onnx()
    assert seen["args"] == ()
    assert seen["kwargs"] == {"kwargs": {"x": x}}
    assert seen["target"] is None


def test_onnx_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without sample, or without ONNX installed, to_onnx says what to do."""
    with pytest.raises(ConfigError, match=r"neither input_sample nor self\.example_input_array"):
        BoringModel().to_onnx("x.onnx")
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="pip install onnx onnxscript"):
        BoringModel().to_onnx("x.onnx", torch.ones(1, 32))
