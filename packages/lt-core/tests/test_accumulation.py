"""Test GradientAccumulationScheduler in training, over a resume, and with what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn

from lt_core import LightningModule, Trainer
from lt_core.callbacks import GradientAccumulationScheduler, LambdaCallback
from lt_interface import MisconfigurationException

BATCHES = list(torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(1)))


class Net(LightningModule):
    """Linear network trained by SGD."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fit(epochs: int, schedule: dict[int, int], **flags: Any) -> tuple[Net, Trainer]:
    net, path = Net(), flags.pop("ckpt_path", None)
    callbacks = [GradientAccumulationScheduler(schedule), *flags.pop("callbacks", [])]
    trainer = Trainer(**{**QUIET, "max_epochs": epochs, "callbacks": callbacks, **flags})
    trainer.fit(net, BATCHES, ckpt_path=path)
    return net, trainer


def by_hand(schedule: list[int]) -> Net:
    """Train one epoch for each number of batches of a step."""
    net = Net()
    optimizer = net.configure_optimizers()
    for number in schedule:
        for first in range(0, len(BATCHES), number):
            window = BATCHES[first : first + number]
            optimizer.zero_grad()
            for batch in window:
                (net.training_step(batch, 0) / len(window)).backward()
            optimizer.step()
    return net


def test_each_epoch_steps_as_the_schedule_says() -> None:
    """Steps take the number of batches of their epoch, a short window at its end included, as in a loop by hand."""
    net, trainer = fit(4, {1: 3, 3: 2})
    assert trainer.global_step == 7 + 3 + 3 + 4
    torch.testing.assert_close(net.layer.weight, by_hand([1, 3, 3, 2]).layer.weight)


@pytest.mark.parametrize("at", [3, 10, 12, 17])
def test_a_resumed_run_goes_on_with_its_epoch_s_number(at: int, tmp_path: Path) -> None:
    """A run that is saved within any epoch and resumed ends with the weights of one that was not."""
    whole, _ = fit(4, {1: 3, 3: 2})
    seen = 0

    def save(trainer: Trainer, *_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            trainer.request_checkpoint(tmp_path / "a.ckpt")

    fit(4, {1: 3, 3: 2}, callbacks=[LambdaCallback(on_train_batch_end=save)])
    resumed, trainer = fit(4, {1: 3, 3: 2}, ckpt_path=tmp_path / "a.ckpt")
    assert trainer.global_step == 17
    assert torch.equal(whole.layer.weight, resumed.layer.weight)


@pytest.mark.parametrize("schedule", [{}, {-1: 2}, {0: 0}, {0.5: 2}, {0: 1.5}, 4, None], ids=repr)
def test_a_schedule_that_is_none_is_refused(schedule: Any) -> None:
    """A schedule names epochs from 0 on and numbers from 1 on."""
    with pytest.raises(MisconfigurationException, match=r"^GradientAccumulationScheduler\(scheduling=|problems:"):
        GradientAccumulationScheduler(schedule)


def test_a_number_beside_the_schedule_is_refused() -> None:
    """The trainer's own number and a schedule exclude each other, before the first batch."""
    with pytest.raises(MisconfigurationException, match="accumulate_grad_batches of the Trainer beside it"):
        fit(1, {0: 2}, accumulate_grad_batches=4)


def test_manual_optimization_is_refused() -> None:
    """A module that steps by itself and a schedule exclude each other, before the first batch."""

    class Manual(Net):
        automatic_optimization = False

    trainer = Trainer(**QUIET, max_epochs=1, callbacks=[GradientAccumulationScheduler({0: 2})])
    with pytest.raises(MisconfigurationException, match="manual optimization steps when the module says so"):
        trainer.fit(Manual(), BATCHES)
