"""Train on a real card: chosen by itself, exact over a resume, given back, explained when it is full."""

from __future__ import annotations

import gc
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lt_core import LightningModule, Trainer
from lt_interface import MisconfigurationException

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.version.cuda is None or torch.cuda.device_count() == 0, reason="no CUDA device here"),
]
QUIET: dict[str, Any] = {
    "limit_val_batches": 0,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
}
MB = 2**20
DATA = list(torch.randn(12, 16, 8, generator=torch.Generator().manual_seed(5)))
PLANNED = """
import torch
from lt_core import Trainer
from lt_core.demos import BoringModel
from lt_core.run.prepare import prepare
from lt_core.state.progress import TrainerFn
trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False)
assert trainer.accelerator.name == "cuda", trainer.accelerator.name
prepare(trainer, TrainerFn.FITTING, BoringModel(), None, None, None)
assert not torch.cuda.is_initialized()
"""


class Net(LightningModule):
    """Network with a random part on the device.

    Args:
        width: Of the hidden layer.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 1))
        self.places: set[torch.device] = set()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        out = self.layers(batch)
        self.places |= {out.device, batch.device, self.device}
        return (out - batch.sum(1, keepdim=True)).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def made(width: int = 32) -> Net:
    """Return a network with the same weights each time, and seed all generators."""
    torch.manual_seed(3)
    return Net(width)


def by_hand(net: Net) -> Net:
    """Train a network by a loop of its own on the first card."""
    net = net.to("cuda:0")
    optimizer = net.configure_optimizers()
    for i, batch in enumerate(DATA):
        loss = net.training_step(batch.to("cuda:0"), i)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.to("cpu")


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_planning_touches_no_card() -> None:
    """A trainer that chose the card, and a fit that is planned, leave CUDA alone."""
    subprocess.run([sys.executable, "-c", PLANNED], check=True, timeout=300)


def test_the_card_is_used_as_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    """Without flags the model trains on the first card to the bits of a loop by hand, and comes back to the CPU."""
    net = made()
    with caplog.at_level("INFO", logger="lt_core"):
        Trainer(max_epochs=1, **{**QUIET, "enable_progress_bar": True}).fit(net, DATA)
    assert net.places == {torch.device("cuda", 0)}
    assert {p.device.type for p in net.parameters()} == {"cpu"}
    assert same(net, by_hand(made()))
    (line,) = [m for m in caplog.messages if m.startswith("Device: ")]
    assert line.startswith(f"Device: cuda:0 ({torch.cuda.get_device_name(0)}, ")


def test_a_resumed_run_draws_the_same_numbers(tmp_path: Path) -> None:
    """A run that was stopped and resumed ends with the bits of one that was not, the card's random numbers included."""
    whole = made()
    Trainer(max_epochs=2, **QUIET).fit(whole, DATA)
    first = Trainer(max_epochs=1, **QUIET)
    first.fit(made(), DATA)
    first.save_checkpoint(tmp_path / "half.ckpt")
    rest = made()
    torch.manual_seed(99)
    Trainer(max_epochs=2, **QUIET).fit(rest, DATA, ckpt_path=str(tmp_path / "half.ckpt"))
    assert same(whole, rest)


def test_memory_is_free_after_a_fit() -> None:
    """After a fit, and after one that failed, the card's memory is free for the next."""
    Trainer(max_epochs=1, **QUIET).fit(made(), DATA)  # after which the libraries of CUDA have their work space
    allocated, reserved = torch.cuda.memory_allocated(0), torch.cuda.memory_reserved(0)

    def fails(trainer: Any, *args: Any) -> None:
        raise ZeroDivisionError

    for stops in (False, True):
        trainer = Trainer(max_epochs=1, **QUIET)
        if stops:
            trainer.on("train_batch_end", once=3)(fails)
        with pytest.raises(ZeroDivisionError) if stops else nullcontext():
            trainer.fit(made(2**20), DATA)
        assert torch.cuda.max_memory_allocated(0) > allocated + 200 * MB
        gc.collect()  # what the error's traceback held
        assert torch.cuda.memory_allocated(0) <= allocated + 8 * MB
        assert stops or torch.cuda.memory_reserved(0) <= reserved + 32 * MB


def test_a_full_card_is_explained() -> None:
    """An error of memory keeps its type, and says who holds what and three ways out; the next fit has room."""

    class Greedy(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            if batch_idx == 2:
                torch.empty(2**45, dtype=torch.uint8, device=self.device)
            return super().training_step(batch, batch_idx)

    with pytest.raises(torch.OutOfMemoryError) as caught:
        Trainer(max_epochs=1, **QUIET).fit(Greedy(2**20), DATA)
    text = str(caught.value)
    assert "cuda:0 was full: tensors held " in text
    assert "optimizer states, exp_avg of layers.0.weight, 32.0 MB" in text
    assert "Ways out: (1) " in text
    del caught
    Trainer(max_epochs=1, **QUIET).fit(made(), DATA)


def test_a_card_that_is_not_there() -> None:
    """A card beyond those of the machine is refused when the trainer is made."""
    with pytest.raises(MisconfigurationException, match="there is no device of index 99"):
        Trainer(devices=[99], **QUIET)
