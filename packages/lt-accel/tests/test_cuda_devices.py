"""Which cards a flag means, on a machine with cards: nothing of it creates a CUDA context."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from machines import FakeCard, FakeMachine

from lt_accel.accelerators.cuda import CUDAAccelerator
from lt_interface.testing import AcceleratorConformance


@pytest.fixture(autouse=True)
def _no_context(machine: FakeMachine) -> Any:
    """Check, after each test, that nothing took a card."""
    yield
    assert machine.current is None


class TestCUDAInTheParent(AcceleratorConformance):
    """The suite's questions to the parent process; test_gpu_cuda.py has the rest."""

    plugin = "cuda"

    @pytest.fixture
    def device(self) -> Any:
        """Skip: the card computes nothing."""
        pytest.skip("this card is not there")


@pytest.fixture
def four(machine: FakeMachine) -> FakeMachine:
    """Return a machine with four cards, the first and third in use."""
    machine.cards = [
        FakeCard("GPU-aaaa1111", used=40_000, busy="90"),
        FakeCard("GPU-bbbb2222"),
        FakeCard("GPU-cccc3333", used=5_000),
        FakeCard("GPU-dddd4444", used=170),
    ]
    machine.show()
    return machine


@pytest.mark.parametrize(
    ("spec", "indices"),
    [
        (2, [0, 1]),
        ("3", [0, 1, 2]),
        ([3, 1], [3, 1]),
        ((2,), [2]),
        ("0,2", [0, 2]),
        ("3,", [3]),
        (-1, [0, 1, 2, 3]),
        ("-1", [0, 1, 2, 3]),
        ("auto", [0, 1, 2, 3]),
        ("GPU-cccc3333", [2]),
        ("GPU-dd, GPU-aaaa", [3, 0]),
        ("auto-idle", [1]),
        ("auto-idle:2", [1, 3]),
        ("auto-idle:3", [1, 2, 3]),
    ],
)
def test_each_spelling(four: FakeMachine, spec: Any, indices: list[int]) -> None:
    """A count, indices, all, UUIDs and the least used cards each mean these indices."""
    assert CUDAAccelerator().parse_devices(spec) == indices


def test_idle_by_utilisation_then_index(four: FakeMachine) -> None:
    """Cards alike in memory are taken by utilisation, then by index; a card that shows none counts as idle."""
    for card, busy in zip(four.cards, ("7", "[N/A]", "3", "0"), strict=True):
        card.used, card.busy = 10, busy
    four.show()
    assert CUDAAccelerator().parse_devices("auto-idle") == [1]
    assert CUDAAccelerator().parse_devices("auto-idle:3") == [1, 2, 3]
    for card, used in zip(four.cards, (100, 0, 30, 20), strict=True):
        card.used, card.busy = used, "0"
    four.show()
    assert CUDAAccelerator().parse_devices("auto-idle:2") == [1, 3]


def test_visible_cards_are_numbered_anew(four: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA_VISIBLE_DEVICES an index is the place in that list, for UUIDs and idle cards too."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-cccc3333")
    cuda = CUDAAccelerator()
    assert cuda.device_count() == 2
    assert cuda.parse_devices("auto") == [0, 1]
    assert cuda.parse_devices("auto-idle") == [0]
    assert cuda.parse_devices("GPU-cccc") == [1]
    with pytest.raises(ValueError, match=r"each UUID must name one card .* Got GPU-dddd4444, GPU-cccc3333\."):
        cuda.parse_devices("GPU-bbbb")


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        (5, "Trainer(devices=5): more devices are asked for than there are. Got 2 here: cuda:0, cuda:1. "),
        ([0, 2], "Trainer(devices=[0, 2]): there is no device of index 2. Got 2 here: cuda:0, cuda:1. "),
        ("auto-idle:3", "Trainer(devices='auto-idle:3'): there must be as many cards. Got 2 here. "),
        ("auto-idle:0", "Trainer(devices='auto-idle:0'): there must be as many cards. Got 2 here. "),
        ("auto-busy", "Trainer(devices='auto-busy'): this is no number of devices, "),
        ("GPU-cccc", "Trainer(devices='GPU-cccc'): each UUID must name one card that this process sees. "),
        ("GPU-aaaa,GPU-aa", "Trainer(devices='GPU-aaaa,GPU-aa'): each UUID must name one card "),
        ("GPU-", "Trainer(devices='GPU-'): each UUID must name one card "),
        ("MIG-11", "Trainer(devices='MIG-11'): an instance of a divided card (MIG) is chosen before Python starts, "),
    ],
)
def test_cards_that_are_not_there(machine: FakeMachine, spec: Any, line: str) -> None:
    """A flag that means a card that is not there is refused with those that are."""
    with pytest.raises(ValueError) as caught:
        CUDAAccelerator().parse_devices(spec)
    assert str(caught.value).startswith(line)


def test_no_card(machine: FakeMachine) -> None:
    """Without cards nothing is available, and each flag is refused."""
    machine.cards = []
    machine.show()
    cuda = CUDAAccelerator()
    assert not cuda.is_available()
    for spec in (1, "auto", [0], -1):
        with pytest.raises(ValueError, match="no such device can be used"):
            cuda.parse_devices(spec)
    with pytest.raises(ValueError, match="nvidia-smi must list the cards"):
        cuda.parse_devices("auto-idle")


def test_cards_of_different_kinds(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CUDA may number cards otherwise than nvidia-smi, the order must be set before a card is named or chosen."""
    machine.cards[1].name = "Fake T4"
    machine.show()
    for spec in ("auto-idle", "GPU-bbbb2222"):
        with pytest.raises(ValueError, match="Run: export CUDA_DEVICE_ORDER=PCI_BUS_ID"):
            CUDAAccelerator().parse_devices(spec)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert CUDAAccelerator().parse_devices("GPU-bbbb2222") == [1]


def test_instance_of_a_divided_card(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that sees an instance has one device, whichever way it is named, and no second one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    cuda = CUDAAccelerator()
    assert cuda.is_available()
    assert [cuda.parse_devices(spec) for spec in (1, "auto", -1, [0], "MIG-1234")] == [[0]] * 5
    for spec in (2, [1]):
        with pytest.raises(ValueError, match=r"one instance of a divided card \(MIG\). Got CUDA_VISIBLE_DEVICES=MIG-1"):
            cuda.parse_devices(spec)
    with pytest.raises(ValueError, match="Run: export CUDA_VISIBLE_DEVICES=MIG-5678"):
        cuda.parse_devices("MIG-5678")


def test_each_rank_would_choose_another_idle_card(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a scheduler started do not each choose an idle card; they would choose the same."""
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "job"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="each process would choose for itself, and a scheduler started several"):
        CUDAAccelerator().parse_devices("auto-idle")


def test_a_task_with_a_card_of_its_own(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process to which its scheduler shows one card uses that one, whatever its place on the node."""
    assert CUDAAccelerator().device(1) == torch.device("cuda", 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert CUDAAccelerator().device(1) == torch.device("cuda", 0)
