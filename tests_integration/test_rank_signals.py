"""Send a signal to one rank of two outside of the training batches: both end soon, at the same place."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import Callback
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.training import Job

JOB = Job(batches=6, epochs=2)
HOOKS = {
    "validate": "on_validation_batch_end",
    "fit": "on_validation_batch_end",
    "test": "on_test_batch_end",
    "predict": "on_predict_batch_end",
}


class Noting(Callback):
    """Callback that counts the batches of an evaluation, and sends a signal to its own rank after some of them."""

    def __init__(self, at: int | None, number: int) -> None:
        self.at, self.number, self.count, self.after = at, number, 0, 0

    def note(self, trainer: Any, *args: Any) -> None:
        """Count a batch; a signal comes once."""
        self.count += 1
        self.after += self.at is None or self.count > self.at
        if self.count == self.at:
            os.kill(os.getpid(), self.number)

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = note


def data(batches: int) -> DataLoader[Any]:
    """Return a loader of so many batches of a rank's own."""
    return DataLoader(TensorDataset(torch.ones(2 * batches, 4), torch.ones(2 * batches, 1)), batch_size=2)


def run(rank: int, stage: str, folder: Path, batches: int, *callbacks: Callback) -> str:
    """Return the type of what a call of the trainer raised on two ranks."""
    module = JOB.network()
    module.test_step = module.validation_step = lambda batch, batch_idx: None
    module.predict_step = lambda batch, batch_idx: batch[0]
    trainer = JOB.trainer(2, strategy=DDPStrategy(), default_root_dir=folder, callbacks=list(callbacks))
    try:
        if stage == "fit":
            trainer.fit(module, JOB.data(rank, 2), data(batches))
        else:
            getattr(trainer, stage)(module, data(batches))
    except BaseException as error:
        return type(error).__name__
    return ""


def on_two(job: Any) -> list[Any]:
    JOB.network().configure_optimizers()  # what ranks need is imported once, before they are forked
    return run_ranks(job, timeout=30.0)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, "SIGTERMException"), (signal.SIGINT, "KeyboardInterrupt")]
)
@pytest.mark.parametrize("stage", HOOKS)
def test_a_signal_to_one_rank_ends_an_evaluation_on_both(tmp_path: Path, stage: str, number: int, error: str) -> None:
    """A signal to one rank ends validation, test, prediction and a fit's validation on both, one batch later."""

    def job(rank: int) -> Any:
        noting = Noting(2 if rank == 1 else None, number)
        return run(rank, stage, tmp_path, 8, noting), noting.count

    assert on_two(job) == [(error, 3), (error, 3)]


@pytest.mark.parametrize("who", [0, 1])
def test_a_rank_that_is_done_hears_of_a_signal(tmp_path: Path, who: int) -> None:
    """A signal to the rank with more batches ends the other one too, which had none left and waits for it."""

    def job(rank: int) -> Any:
        noting = Noting(4 if rank == who else None, signal.SIGTERM)
        return run(rank, "validate", tmp_path, 8 if rank == who else 2, noting), noting.count

    found = on_two(job)
    assert found[who] == ("SIGTERMException", 5)
    assert found[1 - who] == ("SIGTERMException", 2)


@pytest.mark.parametrize("stage", ["validate", "predict"])
def test_ranks_with_other_numbers_of_batches_end_together(tmp_path: Path, stage: str) -> None:
    """Without a signal each rank sees all of its batches, however many the other has, twice in a row."""

    def job(rank: int) -> Any:
        counts = []
        for batches in (1 + 4 * rank, 6 - 4 * rank):
            noting = Noting(None, 0)
            counts.append((run(rank, stage, tmp_path, batches, noting), noting.count))
        return counts

    assert on_two(job) == [[("", 1), ("", 6)], [("", 5), ("", 2)]]


@pytest.mark.parametrize("hook", ["setup", "configure_model", "configure_optimizers", "on_fit_start"])
def test_a_signal_to_one_rank_in_setup_ends_both(tmp_path: Path, hook: str) -> None:
    """A signal to one rank while the run is built ends both before the first batch of training."""

    def job(rank: int) -> Any:
        steps: list[int] = []

        def signalled(self: Any, *args: Any) -> Any:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return getattr(super(type(module), self), hook)(*args)

        module = JOB.network()
        module.__class__ = type("Signalled", (type(module),), {hook: signalled})
        module.on_train_batch_end = lambda *args: steps.append(1)
        trainer = JOB.trainer(2, strategy=DDPStrategy(), default_root_dir=tmp_path, num_sanity_val_steps=1)
        with pytest.raises(SystemExit) as caught:
            trainer.fit(module, JOB.data(rank, 2), data(2))
        return caught.value.code, len(steps)

    assert on_two(job) == [(143, 0), (143, 0)]
