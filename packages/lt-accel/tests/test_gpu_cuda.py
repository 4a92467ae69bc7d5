"""A real card as an accelerator: what no other machine can show."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch

from lt_accel.accelerators.cards import installed
from lt_accel.accelerators.cuda import CUDAAccelerator
from lt_interface import MisconfigurationException, Plan
from lt_interface.testing import AcceleratorConformance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.version.cuda is None or torch.cuda.device_count() == 0, reason="no CUDA device here"),
]
MB = 2**20

PARENT = """
import os, sys, torch
from lt_accel.accelerators.cuda import CUDAAccelerator
from lt_interface import Plan
cuda = CUDAAccelerator()
assert cuda.is_available() and cuda.device_count() >= 1
cuda.parse_devices("auto"), cuda.parse_devices(1), cuda.parse_devices([0])
cuda.describe(0), cuda.missing(), cuda.problems(Plan(), True), cuda.teardown()
if sys.argv[1] == "idle":
    cuda.parse_devices("auto-idle")
assert not torch.cuda.is_initialized()
child = os.fork()
if child == 0:
    cuda.setup(cuda.device(0))
    os._exit(int(torch.ones(4, device="cuda:0").sum().item()))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
cuda.setup(cuda.device(0))
assert torch.cuda.is_initialized() and cuda.problems(Plan(), True)
child = os.fork()
if child == 0:
    try:
        cuda.setup(cuda.device(0))
    except Exception as error:
        os._exit(7 if "a forked process" in str(error) else 8)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


@pytest.fixture
def card() -> Any:
    """Return the first card, taken, and give it back."""
    cuda = CUDAAccelerator()
    cuda.setup(cuda.device(0))
    yield cuda.device(0)
    cuda.teardown()


class TestCUDA(AcceleratorConformance):
    """The whole suite."""

    plugin = "cuda"


def test_planning_leaves_a_process_that_can_fork() -> None:
    """Nothing that the parent asks creates a context, so a forked child can use the card; later it cannot."""
    listed = "idle" if installed() else "plain"
    subprocess.run([sys.executable, "-c", PARENT, listed], check=True, timeout=180)


def test_importing_touches_nothing() -> None:
    """To import the package does not initialise CUDA."""
    code = "import torch, lt_accel.accelerators.cuda; assert not torch.cuda.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=180)


def test_the_device_is_the_process_s_own(card: torch.device) -> None:
    """After setup a tensor "on cuda" lies on the chosen card, and the card has a product's name."""
    assert torch.ones(1, device="cuda").device == card
    name = CUDAAccelerator().describe(0)
    assert name.startswith("cuda:0 (")
    assert torch.cuda.get_device_name(0) in name


def test_a_card_by_its_uuid() -> None:
    """A UUID, whole or shortened, means the card that torch has at that index."""
    if not installed():
        pytest.skip("nvidia-smi does not list the cards here")
    cuda = CUDAAccelerator()
    cuda.setup(cuda.device(0))
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    assert cuda.parse_devices(uuid) == [0]
    assert len(cuda.parse_devices("auto-idle")) == 1


def test_cards_that_are_not_there() -> None:
    """One card more than there are is refused when it is asked for, and at the latest when it is taken."""
    cuda = CUDAAccelerator()
    count = cuda.device_count()
    with pytest.raises(ValueError, match="more devices are asked for than there are"):
        cuda.parse_devices(count + 1)
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        with pytest.raises(MisconfigurationException, match="sees no card of this index"):
            cuda.setup(torch.device("cuda", count))


def test_memory_goes_back(card: torch.device) -> None:
    """Teardown gives back what no tensor holds any more, a circle of objects included."""
    cuda, circle = CUDAAccelerator(), []
    before = cuda.stats(card)["memory_reserved_bytes"]  # libraries of CUDA keep work space here
    circle.append((torch.ones(256 * MB, dtype=torch.uint8, device=card), circle))
    assert cuda.stats(card)["memory_reserved_bytes"] >= 256 * MB
    del circle
    cuda.teardown()
    assert cuda.stats(card)["memory_reserved_bytes"] <= before + 32 * MB


def test_a_full_card_is_explained(card: torch.device) -> None:
    """A real error of memory is explained with the tensors that lie on the card."""
    weight = torch.ones(32 * MB, device=card)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(2**45, dtype=torch.uint8, device=card)
    owners = {"parameters": {"layer.weight": weight}, "buffers": {}, "gradients": {}, "optimizer states": {}}
    text = CUDAAccelerator().explain(caught.value, card, owners)
    assert text.startswith("cuda:0 was full: tensors held ")
    assert "The largest: parameters, layer.weight, 128.0 MB." in text
    assert "Ways out: (1) " in text


def test_figures(card: torch.device) -> None:
    """Memory figures agree with one another; sensors, where they are read, are within what is possible."""
    stats = CUDAAccelerator().stats(card)
    assert 0 < stats["memory_free_bytes"] < stats["memory_total_bytes"]
    assert stats["memory_allocated_bytes"] <= stats["memory_reserved_bytes"]
    assert 0 <= stats.get("utilization_percent", 0) <= 100
    assert 0 <= stats.get("power_watts", 1) < 5000


def test_random_state_of_another_process(card: torch.device) -> None:
    """The state survives a trip through bytes, as in a checkpoint."""
    cuda = CUDAAccelerator()
    state = pickle.loads(pickle.dumps(cuda.rng_state(card)))
    first = torch.rand(4, device=card)
    cuda.set_rng_state(card, state)
    assert torch.equal(torch.rand(4, device=card), first)


def test_advice_for_tensor_cores(card: torch.device) -> None:
    """In float32 a card with tensor cores is advised on, unless the user decided."""
    before = torch.get_float32_matmul_precision()
    expected = torch.cuda.get_device_capability(card) >= (8, 0)
    cuda, plan = CUDAAccelerator(), Plan(accelerator="gpu")
    if getattr(torch.backends.cuda.matmul, "fp32_precision", "none") == "none" and before == "highest":
        assert bool(cuda.advice(card, plan)) == expected
    try:
        torch.set_float32_matmul_precision("high")
        assert not cuda.advice(card, plan)
    finally:
        torch.set_float32_matmul_precision(before)
