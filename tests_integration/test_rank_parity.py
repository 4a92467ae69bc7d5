"""Compare trainings on several ranks with those of one process: the same global batches give the same weights."""

from __future__ import annotations

import random
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # here, and not in each forked rank: it takes a second
from parity_job import found
from rank_cases import ALLOWED, CASES, COMPILED, MATRIX, QUIET, Case, Net, alone, off, samples, train
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lt_core import Callback, Trainer
from lt_interface.testing.ranks import run_ranks

SECONDS = 400.0


expected = cache(lambda name: alone({**CASES, **COMPILED}[name]))


def far(ranks: list[dict[str, dict[str, Any]]]) -> list[str]:
    """Return which weights and buffers of which case are too far from those of one process, and by how much."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            f"rank {rank}, {name}: {key} is {by:.1e} off"
            for rank, found in enumerate(ranks)
            for name, weights in found.items()
            for key, by in off(weights, expected(name)).items()
            if not by <= ALLOWED
        ]


def forked(cases: dict[str, Case], size: int) -> list[dict[str, dict[str, Any]]]:
    """Return what each rank of one job trains, case after case."""

    def job(rank: int) -> dict[str, dict[str, Any]]:
        warnings.simplefilter("ignore")
        return {name: train(case, size, "ddp") for name, case in cases.items()}

    return run_ranks(job, size, SECONDS)


def test_two_ranks_train_what_one_process_does() -> None:
    """After 20 steps all weights and buffers of two ranks are those of one process, whatever the module does."""
    assert far(forked(CASES, 2)) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_train_a_compiled_module(size: int) -> None:
    """A compiled module trains on several ranks as in one process."""
    assert far(forked(COMPILED, size)) == []


@pytest.mark.slow
def test_four_ranks_train_what_one_process_does() -> None:
    """Four ranks train what one process does, also where some of them have no sample of a batch."""
    assert far(forked(CASES, 4)) == []


@pytest.mark.parametrize("name", ["plain", "batch norm, 37 samples", "GAN, toggled"])
def test_forked_ranks_train_what_one_process_does(name: str) -> None:
    """What comes back from ranks that the trainer forks are the weights of one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert far([{name: train(CASES[name], 2, "ddp_fork")}]) == []


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "size"), [("ddp", 2), ("ddp", 4), ("ddp_fork", 2), ("ddp_spawn", 2)])
def test_a_program_s_ranks_train_what_one_process_does(strategy: str, size: int, tmp_path: Path) -> None:
    """However a program starts its ranks, each of them, or what comes back, has the weights of one process."""
    ranks = found(tmp_path, strategy, size, [], SECONDS)
    assert set(ranks[0]) >= set(MATRIX)
    assert far(ranks) == []


class Noisy(Dataset[Any]):
    """Samples that are augmented at random."""

    def __init__(self) -> None:
        self.samples = samples(44)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        x, y = self.samples[index]
        return x + 0.1 * torch.randn(4) * random.random(), y


class Dropping(Net):
    """Network with dropout, and noise of its own, that logs its loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss([nn.functional.dropout(batch[0], 0.3) + 0.01 * torch.randn_like(batch[0]), batch[1]])
        self.log("loss", loss, on_epoch=True, on_step=False, sync_dist=True)
        return loss


class SaveAt(Callback):
    """A checkpoint after one batch of the second epoch.

    Args:
        path: Where it goes.
        batch: The batch.
    """

    def __init__(self, path: Path, batch: int) -> None:
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (1, self.batch):
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("synced", [False, True])
def test_a_resumed_pair_trains_on_to_the_bit(tmp_path: Path, workers: int, synced: bool) -> None:
    """Two ranks that resume in mid-epoch, with dropout and random augmentation, end as the pair that went on."""

    class Module(Dropping):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x: Any) -> Any:
            return self.last(torch.tanh(self.middle(self.norm(self.first(x)))))

    def job(rank: int) -> list[Any]:
        warnings.simplefilter("ignore")
        found = []
        for path in (None, tmp_path / "a.ckpt"):
            torch.manual_seed(40 + rank + bool(path))
            module, callbacks = Module(), [SaveAt(tmp_path / "a.ckpt", 2)] if path is None else []
            flags = {**QUIET, "strategy": "ddp", "devices": 2, "max_epochs": 3, "sync_batchnorm": synced}
            trainer = Trainer(callbacks=callbacks, **flags)
            trainer.fit(module, DataLoader(Noisy(), 4, shuffle=True, num_workers=workers), ckpt_path=path)
            weights = [value.numpy().tobytes() for value in module.state_dict().values()]
            found.append((weights, float(trainer.callback_metrics["loss"]), trainer.global_step))
        return found

    for whole, resumed in run_ranks(job, timeout=SECONDS):
        assert whole == resumed
