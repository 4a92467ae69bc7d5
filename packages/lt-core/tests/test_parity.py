"""Compare training through the trainer with a hand-written loop, to the bit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lt_core import LightningModule, Trainer

EPOCHS = 3


def network() -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 1))


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(torch.randn(28, 6, generator=generator), torch.randn(28, 1, generator=generator))
    return DataLoader(data, batch_size=4, shuffle=True)  # 7 batches: with windows of 3 the last has 1


def optimizer_of(kind: str, parameters: Any) -> torch.optim.Optimizer:
    if kind == "LBFGS":
        return torch.optim.LBFGS(parameters, lr=0.05, max_iter=4)
    return (
        torch.optim.SGD(parameters, lr=0.05, momentum=0.9) if kind == "SGD" else torch.optim.Adam(parameters, lr=0.01)
    )


def scheduler_of(kind: str, optimizer: torch.optim.Optimizer) -> Any:
    if kind == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)


class Net(LightningModule):
    def __init__(self, optimizer: str, scheduler: str) -> None:
        super().__init__()
        self.net = network()
        self.kinds = optimizer, scheduler

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self.kinds[0], self.parameters())
        scheduler = scheduler_of(self.kinds[1], optimizer)
        interval = "step" if self.kinds[1] == "step" else "epoch"
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": interval, "monitor": "loss"},
        }


def by_hand(optimizer_kind: str, accumulate: int, clip: str | None, scheduler_kind: str) -> nn.Module:
    """Train as one would without a trainer."""
    net = network()
    optimizer = optimizer_of(optimizer_kind, net.parameters())
    scheduler = scheduler_of(scheduler_kind, optimizer)
    data = loader()
    torch.manual_seed(11)
    for _ in range(EPOCHS):
        total, seen = 0.0, 0
        batches = iter(data)
        while window := list(itertools.islice(batches, accumulate)):

            def closure(window: Any = window, first: list[bool] = [True]) -> torch.Tensor:  # noqa: B006
                nonlocal total, seen
                optimizer.zero_grad()
                losses = []
                for x, y in window:
                    loss = nn.functional.mse_loss(net(x), y)
                    if len(first) <= len(window):
                        total, seen = total + loss.item() * len(x), seen + len(x)
                        first.append(True)
                    loss = loss / len(window)
                    loss.backward()
                    losses.append(loss)
                if clip == "norm":
                    nn.utils.clip_grad_norm_(net.parameters(), 0.1)
                elif clip == "value":
                    nn.utils.clip_grad_value_(net.parameters(), 0.01)
                return sum(losses[1:], losses[0])

            closure.__defaults__ = (window, [True])
            if optimizer_kind == "LBFGS":
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
            if scheduler_kind == "step":
                scheduler.step()
        if scheduler_kind == "epoch":
            scheduler.step()
        elif scheduler_kind == "plateau":
            scheduler.step(total / seen)
    return net


@pytest.mark.parametrize("scheduler", ["step", "epoch", "plateau"])
@pytest.mark.parametrize("clip", [None, "norm", "value"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "LBFGS"])
def test_weights_equal_a_hand_written_loop_bit_for_bit(
    optimizer: str, accumulate: int, clip: str | None, scheduler: str
) -> None:
    """After three epochs the weights are those of the hand-written loop, a short last window included."""
    expected = by_hand(optimizer, accumulate, clip, scheduler)
    module, data = Net(optimizer, scheduler), loader()
    trainer = Trainer(
        max_epochs=EPOCHS,
        accumulate_grad_batches=accumulate,
        gradient_clip_val={None: None, "norm": 0.1, "value": 0.01}[clip],
        gradient_clip_algorithm=clip,
        **QUIET,
    )
    torch.manual_seed(11)
    trainer.fit(module, data)
    for (name, ours), theirs in zip(module.net.named_parameters(), expected.parameters(), strict=True):
        assert bool(ours.isfinite().all())
        assert torch.equal(ours, theirs), name
    assert trainer.global_step == EPOCHS * (7 if accumulate == 1 else 3)
