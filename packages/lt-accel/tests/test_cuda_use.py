"""A card in use: taken, described, explained when it is full or refused, and given back."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from machines import GB, FakeMachine

from lt_accel.accelerators import cuda as module
from lt_accel.accelerators.cuda import CUDAAccelerator
from lt_interface import MisconfigurationException, Plan, Problem

CARD = torch.device("cuda", 0)


def text_of(problem: Problem | None) -> str:
    assert problem is not None
    return str(problem)


def refused(machine: FakeMachine, error: Exception, device: torch.device = CARD) -> str:
    """Return what setup raises where CUDA answers with an error."""
    machine.refusal = error
    with pytest.raises(MisconfigurationException) as caught:
        CUDAAccelerator().setup(device)
    assert caught.value.__cause__ is not None
    return str(caught.value)


def test_the_device_is_chosen_first(machine: FakeMachine) -> None:
    """Setup makes the card the process's own before anything else touches CUDA; another kind is refused."""
    accelerator = CUDAAccelerator()
    accelerator.setup(torch.device("cuda", 1))
    assert machine.calls == ["set_device cuda:1", "reset_peak"]
    with pytest.raises(ValueError, match=r'the device must be "cuda"\. Got "cpu"'):
        accelerator.setup(torch.device("cpu"))


def test_nothing_is_freed_without_a_context(machine: FakeMachine) -> None:
    """Teardown creates no context; after setup it gives memory back, and may be repeated."""
    accelerator = CUDAAccelerator()
    accelerator.teardown()
    assert machine.calls == []
    accelerator.setup(CARD)
    accelerator.teardown()
    accelerator.teardown()
    assert machine.calls[2:] == ["empty_cache", "empty_cache"]


def test_a_card_that_another_process_holds(machine: FakeMachine) -> None:
    """An exclusive card in use is named with its compute mode."""
    machine.cards[0].mode = "Exclusive_Process"
    machine.show()
    line = refused(machine, RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"))
    assert line == (
        "cuda:0: another process has this card for itself. Got compute mode Exclusive_Process. "
        'End that process, or choose another card: devices="auto-idle".'
    )


def test_a_card_without_memory(machine: FakeMachine) -> None:
    """A card that others filled is named with how much they hold."""
    machine.cards[1].used = 81_000
    machine.show()
    line = refused(machine, torch.OutOfMemoryError("CUDA error: out of memory"), torch.device("cuda", 1))
    assert line.startswith("cuda:1: other processes have left this card no memory to start in. Got 81000")


def test_a_divided_card(machine: FakeMachine) -> None:
    """A card that is divided into instances is refused with the way to name one."""
    machine.cards[0].divided = True
    machine.show()
    line = refused(machine, RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"))
    assert "divided into instances (MIG)" in line
    assert "export CUDA_VISIBLE_DEVICES=MIG-" in line


@pytest.mark.parametrize(("toolkit", "needed"), [("11.8", "450.80.02"), ("12.8", "525.60.13"), ("13.0", "580.65.06")])
def test_an_old_driver(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, toolkit: str, needed: str) -> None:
    """A driver that is too old is refused with the version that torch's CUDA needs, and the one that is there."""
    machine.driver = "440.33.01"
    machine.show()
    monkeypatch.setattr(torch.version, "cuda", toolkit)
    line = refused(machine, RuntimeError("The NVIDIA driver on your system is too old (found version 10020)."))
    assert f"built for CUDA {toolkit}, which needs driver {needed} or newer. Got driver 440.33.01. Update" in line


def test_an_old_driver_that_no_program_shows(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nvidia-smi the driver's own words are shown."""
    monkeypatch.setenv("PATH", "")
    line = refused(machine, RuntimeError("CUDA driver version is insufficient for CUDA runtime version"))
    assert "built for CUDA 12.8, and the driver is older. Got CUDA driver version is insufficient" in line


def test_a_rank_too_many(machine: FakeMachine) -> None:
    """A process whose place is beyond the cards that it sees is refused with their number."""
    with pytest.raises(MisconfigurationException, match=r"sees no card of this index. Got 2 cards, CUDA_VISIBLE_DEV"):
        CUDAAccelerator().setup(torch.device("cuda", 3))


def test_a_forked_process(machine: FakeMachine) -> None:
    """CUDA after a fork is refused in the words of the trainer, and before the fork where it can be."""
    line = refused(machine, RuntimeError("Cannot re-initialize CUDA in forked subprocess. To use CUDA with ..."))
    assert "CUDA cannot be used in a forked process once the launching one has used it" in line
    machine.refusal, accelerator, plan = None, CUDAAccelerator(), Plan(launcher="forks")
    machine.current = None
    assert not accelerator.problems(plan, True)
    accelerator.setup(CARD)
    assert not accelerator.problems(plan, False)
    (problem,) = accelerator.problems(plan, True)
    assert str(problem).startswith("launcher 'forks': a forked process cannot use CUDA once")


def test_another_refusal(machine: FakeMachine) -> None:
    """An error that nobody knows keeps its own words."""
    line = refused(machine, RuntimeError("CUDA error: an illegal thing was met.\nmore"))
    assert "CUDA refuses this card. Got RuntimeError: CUDA error: an illegal thing was met. Run nvidia-smi" in line


def test_a_build_without_cuda(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch has no CUDA and the machine has cards, that is what is missing; without cards nothing is."""
    accelerator = CUDAAccelerator()
    assert accelerator.missing() is None
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert text_of(accelerator.missing()) == (
        f"cuda: this PyTorch was built without CUDA, and there is a card. Got torch "
        f"{torch.__version__}, Fake A100, Fake A100. Install a CUDA build of torch: the selector at "
        "pytorch.org/get-started has the command."
    )
    machine.cards = []
    machine.show()
    assert accelerator.missing() is None
    monkeypatch.setenv("PATH", "")
    assert accelerator.missing() is None


def test_hidden_cards(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CUDA_VISIBLE_DEVICES leaves no card, that is what is missing."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES hides every card. Got CUDA_VISIBLE_DEVICES=''" in text_of(CUDAAccelerator().missing())


def test_a_driver_that_does_not_answer(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose nvidia-smi fails, or hangs in a broken driver, has no cards that can be listed."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "CUDA does not start. Got Fake A100, Fake A100" in text_of(CUDAAccelerator().missing())
    program = machine._folder / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n", encoding="utf-8")
    assert CUDAAccelerator().missing() is None
    monkeypatch.setattr("lt_accel.accelerators.cards._SECONDS", 0.2)
    program.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    assert CUDAAccelerator().missing() is None


def test_names(machine: FakeMachine) -> None:
    """A card is named by index; once CUDA is in use, by product and memory too."""
    accelerator = CUDAAccelerator()
    assert accelerator.describe(1) == "cuda:1"
    accelerator.setup(CARD)
    assert accelerator.describe(1) == "cuda:1 (Fake A100, 80.0 GB)"


class TestAdvice:
    @pytest.fixture(autouse=True)
    def _undecided(self, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Begin as a new process does, and leave torch as it was."""
        CUDAAccelerator().setup(CARD)
        self.forget()
        yield
        self.forget()

    @staticmethod
    def forget() -> None:
        """Let torch be as if nobody had decided."""
        torch.set_float32_matmul_precision("highest")
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            torch.backends.cuda.matmul.fp32_precision = "none"

    def advice(self, precision: str = "32-true") -> list[str]:
        return list(CUDAAccelerator().advice(CARD, Plan(accelerator="gpu", precision=precision)))

    def test_tensor_cores_that_lie_idle(self) -> None:
        """In float32 on a card with tensor cores the exact call is shown."""
        (line,) = self.advice()
        assert 'torch.set_float32_matmul_precision("high")' in line

    def test_not_where_it_changes_nothing(self, machine: FakeMachine) -> None:
        """Other formats, and cards without such cores, need no advice."""
        assert not self.advice("bf16-mixed")
        assert not self.advice("64-true")
        machine.capability = (7, 5)
        assert not self.advice()

    @pytest.mark.parametrize("decision", ["high", "medium"])
    def test_not_where_the_user_decided(self, decision: str) -> None:
        """Whoever set the precision is not asked again."""
        torch.set_float32_matmul_precision(decision)
        assert not self.advice()

    @pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch knows it from 2.9 on")
    def test_not_where_the_user_chose_the_default(self) -> None:
        """To set "highest" is a decision too."""
        torch.set_float32_matmul_precision("highest")
        assert not self.advice()


def test_figures(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is always there; sensors where nvidia-ml-py is installed, less those that the card lacks."""
    accelerator = CUDAAccelerator()
    accelerator.setup(CARD)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    memory = {"allocated": 2 * GB, "reserved": 3 * GB, "peak": 8 * GB, "free": 77 * GB, "total": 80 * GB}
    assert accelerator.stats(CARD) == {f"memory_{name}_bytes": value for name, value in memory.items()}

    def lacking(device: Any) -> int:
        raise RuntimeError("Not Supported")

    monkeypatch.setattr(module, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 37)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: 250_500)
    monkeypatch.setattr(torch.cuda, "temperature", lacking)
    stats = accelerator.stats(CARD)
    assert (stats["utilization_percent"], stats["power_watts"]) == (37, 250.5)
    assert "temperature_celsius" not in stats


def test_random_state(machine: FakeMachine) -> None:
    """The generator's state comes back; a state of another kind of GPU leaves it alone."""
    accelerator = CUDAAccelerator()
    accelerator.setup(CARD)
    state = accelerator.rng_state(CARD)
    first = torch.rand(4, generator=machine.generator)
    accelerator.set_rng_state(CARD, state)
    assert torch.equal(torch.rand(4, generator=machine.generator), first)
    accelerator.set_rng_state(CARD, {"mps": torch.zeros(44, dtype=torch.uint8)})
    accelerator.set_rng_state(CARD, state)
    assert torch.equal(torch.rand(4, generator=machine.generator), first)


class TestFullMemory:
    """Messages for a card that is full; tensors of a "meta" device stand for those on a card."""

    device = torch.device("meta")

    def owners(self, parameters: float = 0, gradients: float = 0, states: float = 0) -> Any:
        """Return tensors of so many GB."""

        def tensor(size: float) -> torch.Tensor:
            return torch.empty(int(size * GB), dtype=torch.uint8, device="meta")

        return {
            "parameters": {"net.weight": tensor(parameters), "elsewhere": torch.ones(1)},
            "buffers": {},
            "gradients": {"net.weight": tensor(gradients)} if gradients else {},
            "optimizer states": {"exp_avg of net.weight": tensor(states)} if states else {},
        }

    @pytest.fixture
    def explain(self, machine: FakeMachine) -> Callable[..., str]:
        """Return a call that explains a full card."""
        CUDAAccelerator().setup(CARD)
        error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return lambda **sizes: CUDAAccelerator().explain(error, self.device, self.owners(**sizes))

    def test_activations(self, machine: FakeMachine, explain: Callable[..., str]) -> None:
        """What no owner holds is the step's own; the ways out begin with the batch."""
        machine.peak = machine.allocated = machine.reserved = 70 * GB
        lines = explain(parameters=1, gradients=1, states=2).splitlines()
        assert lines == [
            "meta was full: tensors held 70.0 GB of 80.0 GB: activations and what else a step needs 66.0 GB, "
            "optimizer states 2.0 GB, parameters 1.0 GB, gradients 1.0 GB.",
            "The largest: optimizer states, exp_avg of net.weight, 2.0 GB; parameters, net.weight, 1.0 GB; "
            "gradients, net.weight, 1.0 GB.",
            "Ways out: (1) Halve the batch and set accumulate_grad_batches=2, which trains the same. (2) Set "
            'precision="bf16-mixed", which halves most activations. (3) Wrap the largest blocks in '
            "torch.utils.checkpoint.checkpoint, which computes activations again.",
        ]

    def test_states(self, machine: FakeMachine, explain: Callable[..., str]) -> None:
        """Where parameters and what is kept for them fill the card, the ways out begin with their format."""
        machine.peak = machine.allocated = machine.reserved = 70 * GB
        ways = explain(parameters=16, gradients=16, states=32).splitlines()[-1]
        assert ways.startswith('Ways out: (1) Set precision="bf16-true"')
        assert "(2) Take an optimizer that keeps less" in ways
        assert "(3) Halve the batch" in ways

    def test_evaluation(self, machine: FakeMachine, explain: Callable[..., str]) -> None:
        """Without gradients no word is about training."""
        ways = explain(parameters=16).splitlines()[2]
        assert ways.startswith("Ways out: (1) Make the batch smaller. ")
        assert "accumulate" not in ways

    def test_others_and_pieces(self, machine: FakeMachine, explain: Callable[..., str]) -> None:
        """What other processes hold, and memory that lies in pieces, is said with what to do about it."""
        machine.allocated, machine.reserved, machine.others = 20 * GB, 40 * GB, 30 * GB
        text = explain(parameters=1, gradients=1)
        assert 'Other processes hold up to 30.0 GB of it: devices="auto-idle" takes' in text
        assert "20.0 GB are reserved in pieces: set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True." in text

    def test_what_the_driver_refuses(self, machine: FakeMachine) -> None:
        """Memory that the driver itself refuses, as for a library's work space, is explained as the allocator's is."""
        CUDAAccelerator().setup(CARD)
        error = RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")
        assert "was full: tensors held" in CUDAAccelerator().explain(error, self.device, self.owners())

    def test_other_errors(self, machine: FakeMachine) -> None:
        """To any other error there is nothing to add, and nothing is asked of CUDA."""
        assert CUDAAccelerator().explain(RuntimeError("CUDA error"), CARD, self.owners()) == ""
        assert machine.current is None


def test_nothing_of_a_real_driver_is_used(machine: FakeMachine) -> None:
    """The tests' nvidia-smi comes first."""
    assert os.environ["PATH"].startswith(str(machine._folder))
