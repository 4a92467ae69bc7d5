"""Command line in several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PARTS = """
import torch
from lt_core import LightningModule
from lt_core.demos import BoringDataModule, BoringModel

class Net(BoringModel):
    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = factor

    configure_optimizers = LightningModule.configure_optimizers

    def training_step(self, batch, batch_idx):
        return self.loss(self(batch)) * self.factor
"""
WORDS = ["--model=parts.Net", "--model.factor=2.0", "--data=parts.BoringDataModule", "--optimizer=Adam"]
WORDS += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=4", "--trainer.limit_val_batches=0"]
WORDS += ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.enable_progress_bar=false"]


def fit(folder: Path, *words: str) -> str:
    """Run ``lt fit`` in a folder; return what it said."""
    environment = {**os.environ, "POSSIBLE_USER_WARNINGS": "off"}
    command = [sys.executable, "-m", "lt_core.cli", "fit", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_spawn"])
def test_ranks_are_started_from_the_command_line(strategy: str, tmp_path: Path) -> None:
    """Two ranks train what the command line names, one file is saved, and it trains the same weights again."""
    from lt_core.checkpoint import load_checkpoint

    (tmp_path / "parts.py").write_text(PARTS)
    fit(tmp_path, *WORDS, f"--trainer.strategy={strategy}")
    [config] = tmp_path.rglob("config.yaml")
    fit(tmp_path, "--config", str(config))
    first, second = (load_checkpoint(path)["state_dict"] for path in sorted(tmp_path.rglob("*.ckpt")))
    assert all(bool((first[name] == second[name]).all()) for name in first)
    assert len(first) == 2


def test_a_script_that_is_run_again_reads_the_same_words(tmp_path: Path) -> None:
    """Under ``ddp`` the second rank runs the same command line; a seed of its own would be another one."""
    (tmp_path / "parts.py").write_text(PARTS)
    fit(tmp_path, *WORDS, "--trainer.strategy=ddp", "--seed_everything=true")
    assert len([*tmp_path.rglob("config.yaml")]) == 1
