"""The GPU of an Apple computer, as far as a machine without can show."""

from __future__ import annotations

import platform
import sys
from typing import Any

import pytest
import torch

from lt_accel.accelerators.mps import MPSAccelerator
from lt_interface import MisconfigurationException, Plan
from lt_interface.testing import AcceleratorConformance

DEVICE = torch.device("mps", 0)
GB = 2**30


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what is asked of an Apple computer that torch can use."""
    calls: list[str] = []
    generator = torch.Generator()
    answers: dict[str, Any] = {
        "empty_cache": lambda: calls.append("empty_cache"),
        "current_allocated_memory": lambda: 2 * GB,
        "driver_allocated_memory": lambda: 3 * GB,
        "recommended_max_memory": lambda: 16 * GB,
        "get_rng_state": generator.get_state,
        "set_rng_state": generator.set_state,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.mps, name, answer)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    return calls


@pytest.mark.usefixtures("apple")
class TestMPSInTheParent(AcceleratorConformance):
    """The suite's questions to the parent process."""

    plugin = "mps"

    @pytest.fixture
    def device(self) -> Any:
        """Skip: the device computes nothing."""
        pytest.skip("this device is not there")


class TestMPS(AcceleratorConformance):
    """The whole suite, on an Apple computer."""

    plugin = "mps"


def test_one_device(apple: list[str]) -> None:
    """There is one device, and more are refused."""
    assert [MPSAccelerator().parse_devices(spec) for spec in (1, "1", -1, "auto", [0])] == [[0]] * 5
    with pytest.raises(ValueError, match=r"Got 1 here: mps:0\. Write devices=1\."):
        MPSAccelerator().parse_devices(2)


def test_no_64_bits(apple: list[str]) -> None:
    """64-true is refused before anything starts; other formats are not."""
    (problem,) = MPSAccelerator().problems(Plan(accelerator="gpu", precision="64-true"), False)
    assert str(problem) == (
        "Trainer(precision='64-true'): MPS has no numbers of 64 bits. Got accelerator=\"mps\". "
        'Write precision="32-true", or accelerator="cpu".'
    )
    assert not MPSAccelerator().problems(Plan(accelerator="gpu", precision="16-true"), False)


def test_what_is_missing(apple: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An Apple computer that cannot use its GPU has a reason; another machine lacks nothing."""
    accelerator = MPSAccelerator()
    assert accelerator.missing() is None
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(platform, "mac_ver", lambda: ("12.1", (), ""))
    assert "needs macOS 14 or newer and a GPU with Metal. Got macOS 12.1 on" in str(accelerator.missing())
    with pytest.raises(MisconfigurationException, match="needs macOS 14"):
        accelerator.setup(DEVICE)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)
    assert "this PyTorch was built without MPS" in str(accelerator.missing())
    monkeypatch.setattr(sys, "platform", "linux")
    assert accelerator.missing() is None
    with pytest.raises(MisconfigurationException, match="there is no GPU that torch can use by MPS"):
        accelerator.setup(DEVICE)


def test_in_use(apple: list[str]) -> None:
    """It is taken, named, measured and given back; a device of another kind is refused."""
    accelerator = MPSAccelerator()
    with pytest.raises(ValueError, match=r'the device must be "mps"\. Got "cuda:0"'):
        accelerator.setup(torch.device("cuda", 0))
    accelerator.setup(accelerator.device(0))
    assert accelerator.describe(0) == "mps:0"
    assert not accelerator.advice(DEVICE, Plan(accelerator="gpu"))
    assert accelerator.stats(DEVICE)["memory_reserved_bytes"] == 3 * GB
    state = accelerator.rng_state(DEVICE)
    accelerator.set_rng_state(DEVICE, state)
    accelerator.set_rng_state(DEVICE, {"cuda": torch.zeros(16, dtype=torch.uint8)})
    accelerator.teardown()
    assert apple == ["empty_cache"]


def test_full_memory(apple: list[str]) -> None:
    """A full memory is explained; other errors are not."""
    full = RuntimeError("MPS backend out of memory (MPS allocated: 2 GB)")
    text = MPSAccelerator().explain(full, torch.device("meta"), {"parameters": {"w": torch.ones(8, device="meta")}})
    assert text.startswith("meta was full: tensors held 2.0 GB of 16.0 GB: activations")
    assert text.endswith("The driver keeps 1.0 GB beside it.")
    assert MPSAccelerator().explain(RuntimeError("no"), DEVICE, {}) == ""
