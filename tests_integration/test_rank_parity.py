"""Compare trainings on several ranks with those of one process: the same global batches give the same weights."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest
import torch._dynamo  # noqa: F401 - here, and not in each forked rank: it takes a second
from rank_cases import CASES, train

from lt_interface.testing.ranks import run_ranks

SECONDS = 400.0


@cache
def alone(name: str) -> dict[str, Any]:
    """Return what one process trains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train(CASES[name], 1)


def differences(found: dict[str, Any], name: str) -> list[str]:
    """Return by how much the weights of one rank are off, where that is more than the case allows."""
    expected = alone(name)
    assert list(found) == list(expected)
    far = {key: float(abs(found[key] - value).max()) for key, value in expected.items()}
    return [f"{name}: {key} is {by:.1e} off" for key, by in far.items() if not by <= CASES[name].atol]


def on_ranks(names: list[str], size: int) -> list[dict[str, dict[str, Any]]]:
    """Return what each rank of one job trains, case after case."""

    def job(rank: int) -> dict[str, dict[str, Any]]:
        warnings.simplefilter("ignore")
        return {name: train(CASES[name], size, "ddp") for name in names}

    return run_ranks(job, size, SECONDS)


def check(names: list[str], size: int) -> None:
    """Compare every rank of one job with one process."""
    ranks = on_ranks(names, size)
    assert [line for found in ranks for name in names for line in differences(found[name], name)] == []


COMPILED = [name for name in CASES if name.startswith("compiled")]


def test_two_ranks_train_what_one_process_does() -> None:
    """After 20 batches all weights and buffers of two ranks are those of one process, whatever the module does."""
    check([name for name in CASES if name not in COMPILED], 2)


@pytest.mark.slow
def test_two_ranks_train_a_compiled_module() -> None:
    """A compiled module trains on two ranks as in one process."""
    check(COMPILED, 2)


@pytest.mark.slow
def test_four_ranks_train_what_one_process_does() -> None:
    """Four ranks train what one process does, also where some of them have no sample of a batch."""
    check([name for name in CASES if name not in COMPILED], 4)
