"""A trainer on a machine with cards: `test_gpu_training.py` has what only a real one can show."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import Trainer
from lt_core.demos import BoringModel
from lt_interface import ConfigError, MisconfigurationException
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.training import Job

QUIET: dict[str, Any] = {
    "max_steps": 1,
    "limit_val_batches": 0,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
}


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch count two cards, and no driver refuse to be asked."""
    for name in ("CUDA_VISIBLE_DEVICES", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setenv("PATH", "")


@pytest.mark.usefixtures("two_cards")
class TestWithCards:
    def test_a_trainer_uses_all_cards(self) -> None:
        """Without flags a trainer takes all cards, whichever name the accelerator is asked for by."""
        for accelerator in ("auto", "gpu", "cuda"):
            trainer = Trainer(accelerator=accelerator, **QUIET)
            assert trainer.accelerator.name == "cuda"
            assert (trainer.device_ids, trainer.strategy.name) == ([0, 1], "ddp")
        assert Trainer(devices=1, **QUIET).strategy.name == "single_device"

    def test_several_cards_are_several_processes(self) -> None:
        """Two cards are a strategy of several processes; for one of one process they are refused with its name."""
        assert Trainer(devices=2, **QUIET).strategy.name == "ddp"
        with pytest.raises(ConfigError, match=r'one device of one node.*Write strategy="ddp"'):
            Trainer(devices=2, strategy="single_device", **QUIET).fit(BoringModel())

    def test_the_device_is_known_before_a_run(self) -> None:
        """Where the process that makes a trainer is a rank, its device is known at once, not in one that forks."""
        for flags, device in (
            ({"devices": [1]}, "cuda:1"),
            ({"devices": 2}, "cuda:0"),
            ({"devices": 2, "strategy": "ddp_fork"}, "cpu"),
        ):
            trainer = Trainer(**QUIET, **flags)
            assert trainer.root_device == trainer.strategy.root_device == torch.device(device)
        with Trainer(devices=[1], **QUIET).init_module():
            assert torch.get_default_device() == torch.device("cuda", 1)

    def test_a_card_that_is_not_there(self) -> None:
        """An index beyond the cards is refused when the trainer is made."""
        with pytest.raises(ConfigError, match=r"Trainer\(devices=\[2\]\): there is no device of index 2\. Got 2 here"):
            Trainer(devices=[2], **QUIET)

    def test_cards_beside_the_cpu(self, caplog: pytest.LogCaptureFixture) -> None:
        """Where the user chose the CPU, the line at the start names the cards that are not used."""
        with caplog.at_level("INFO", logger="lt_core"):
            Trainer(accelerator="cpu", **{**QUIET, "enable_progress_bar": True}).fit(BoringModel())
        assert any(line.startswith("Device: cpu. Not used: cuda:0, cuda:1. ") for line in caplog.messages)

    def test_half_precision_is_not_a_cpu_s(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a card 16-mixed is not taken for what a CPU would do in its place; without one it is, which is said."""
        with suppress(ConfigError):  # where no installed package has the precision
            assert Trainer(precision="16-mixed", **QUIET).precision == "16-mixed"
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        with pytest.warns(UserWarning, match="16-mixed"):
            assert Trainer(precision="16-mixed", **QUIET).precision == "bf16-mixed"

    @pytest.mark.skipif(torch.version.cuda is not None, reason="this torch can use a card")
    def test_a_card_that_refuses(self) -> None:
        """A card that cannot be taken ends the call before any hook, in the words of the trainer."""
        with pytest.raises(MisconfigurationException, match="this PyTorch was built without CUDA"):
            Trainer(devices=1, **QUIET).fit(BoringModel())


class Heard(logging.Handler):
    """Handler that keeps the lines of one process."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_one_rank_of_two_says_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With several ranks rank 0 alone writes the line, and names each device once."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    job = Job(batches=2, epochs=1)
    job.network().configure_optimizers()

    def rank(index: int) -> list[str]:
        heard, log = Heard(), logging.getLogger("lt_core")
        log.addHandler(heard)
        log.setLevel("INFO")
        flags = {"default_root_dir": tmp_path, "enable_checkpointing": False, "enable_progress_bar": True}
        trainer = job.trainer(2, strategy=DDPStrategy(), **flags)
        trainer.fit(job.network(), job.data(index, 2), job.data(index, 2)[:1])
        return [line for line in heard.lines if line.startswith("Device")]

    [line], nothing = run_ranks(rank, timeout=60.0)
    assert line.startswith("Device: cpu. Not used: cuda:0. Precision: 32-true. Strategy: ddp (2 processes). ")
    assert not nothing


def test_64_bits_on_an_apple_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    """64-true on MPS is refused with everything else that is wrong, before anything starts."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    trainer = Trainer(precision="64-true", **QUIET)
    assert trainer.accelerator.name == "mps"
    with pytest.raises(ConfigError, match="MPS has no numbers of 64 bits"):
        trainer.fit(BoringModel())
