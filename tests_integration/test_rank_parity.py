"""Compare trainings on several ranks with those of one process: the same global batches give the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from parity_job import found
from rank_cases import ALLOWED, CASES, COMPILED, MATRIX, Case, alone, off, train
from resume_job import twice

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


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("synced", [False, True])
def test_a_resumed_pair_trains_on_to_the_bit(tmp_path: Path, workers: int, synced: bool) -> None:
    """Two ranks that resume in mid-epoch, with dropout and random augmentation, end as the pair that went on."""

    def job(rank: int) -> Any:
        warnings.simplefilter("ignore")
        return twice("ddp", workers, tmp_path, sync_batchnorm=synced)

    for whole, resumed in run_ranks(job, timeout=SECONDS):
        assert whole == resumed


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork", "ddp_spawn"])
def test_a_program_s_ranks_resume_to_the_bit(strategy: str, workers: str, tmp_path: Path) -> None:
    """The same holds however a program starts its ranks, for each rank that runs it."""
    command = [sys.executable, str(Path(__file__).with_name("resume_job.py")), strategy, workers, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 0, ended.stderr
    ranks = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*.json")]
    assert len(ranks) == (2 if strategy == "ddp" else 1)
    for whole, resumed in ranks:
        assert whole == resumed
