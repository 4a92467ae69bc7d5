"""Let one rank of two fail anywhere: it ends by its own error, the other soon after by one that names it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import Callback, LightningModule
from lt_core.callbacks import ModelCheckpoint
from lt_interface import RankFailedError
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.training import Job

JOB = Job(batches=6, epochs=2)
SECONDS = 5.0


class Net(LightningModule):
    """Linear module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return a loss that depends on every sample."""
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log a value that all ranks have part in."""
        self.log("val_loss", self.layer(batch[0]).square().mean(), sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the outputs."""
        return self.layer(batch[0])

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader() -> DataLoader[Any]:
    """Return a loader of six batches, three for each of two ranks."""
    return DataLoader(TensorDataset(torch.arange(96.0).reshape(24, 4) / 96), batch_size=4)


def trainer_in(folder: Path, *callbacks: Any, **flags: Any) -> Any:
    """Return a quiet trainer of two ranks."""
    flags = {"enable_checkpointing": True, "num_sanity_val_steps": 1, "use_distributed_sampler": True, **flags}
    return JOB.trainer(2, strategy=DDPStrategy(), default_root_dir=folder, callbacks=list(callbacks), **flags)


def on_two(job: Any) -> list[Any]:
    JOB.network().configure_optimizers()  # what ranks need is imported once, before they are forked
    return run_ranks(job, timeout=25.0)


def outcome(call: Any) -> tuple[str, str, float]:
    """Return the type and the text of what a call raised, and how many seconds it took."""
    begun = time.monotonic()
    try:
        call()
    except BaseException as error:
        return type(error).__name__, str(error), time.monotonic() - begun
    return "", "", time.monotonic() - begun


def failing(kind: type, hook: str, when: Any) -> type:
    """Return a class whose hook raises where ``when`` is true, and is the base's own where not."""

    def raising(self: Any, *args: Any) -> Any:
        if when():
            raise ValueError(f"no {hook} here")
        return getattr(super(Failing, self), hook)(*args)

    raising.__name__ = hook
    Failing = type("Failing", (kind,), {hook: raising})
    return Failing


def check(outcomes: list[tuple[str, str, float]], who: int, hook: str) -> None:
    """Check that one rank raised its own error, and the other one that names rank, place and error."""
    (own, _, _), (other, text, seconds) = outcomes[who], outcomes[1 - who]
    assert own == "ValueError"
    assert other == "RankFailedError", text
    assert f"rank {who}: it failed in {hook}" in text
    assert f"ValueError: no {hook} here" in text
    assert seconds < SECONDS


MODULE_HOOKS = [
    *("setup", "configure_callbacks", "configure_model", "configure_optimizers", "on_fit_start", "on_train_start"),
    *("validation_step", "on_validation_start", "on_validation_epoch_end", "on_train_epoch_end", "on_train_end"),
    *("on_fit_end", "teardown", "on_save_checkpoint", "on_train_batch_start", "training_step", "on_train_batch_end"),
]


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("hook", MODULE_HOOKS)
def test_an_error_of_one_rank_in_any_hook_ends_both(tmp_path: Path, hook: str, who: int) -> None:
    """The rank whose hook raises ends by that error, and the other by one that names it, though its process lives."""

    def job(rank: int) -> Any:
        module = failing(Net, hook, lambda: rank == who)()
        return outcome(lambda: trainer_in(tmp_path).fit(module, loader(), loader()))

    check(on_two(job), who, hook)
