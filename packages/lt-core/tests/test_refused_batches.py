"""Return -1 from `on_train_batch_start`, wherever the accumulation window stands: what ran of it is stepped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn

from lt_core import LightningModule, Trainer
from lt_core.callbacks import ModelCheckpoint

BATCHES = [torch.tensor([[float(i)], [i / 2 - 1]]) for i in range(1, 8)]
WINDOW = 3
ENDS = range(8)  # batches before the one that is refused; 7 of 7: none is


class Net(LightningModule):
    """Regression on two weights that refuses a batch and notes its steps and validations."""

    def __init__(self, end: int = 7, form: str = "sgd") -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer, self.end, self.form = nn.Linear(1, 1), end, form
        self.seen: list[tuple[int, int]] = []
        self.validated: list[int] = []
        self.norms: list[float] = []
        if form == "overridden":
            self.optimizer_step = lambda epoch, index, optimizer, closure: optimizer.step(closure=closure)

    def loss(self, batch: Tensor) -> Tensor:
        """Return the squared error to twice the input."""
        return (self.layer(batch) - 2 * batch).square().mean()

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> int | None:
        """Refuse a batch."""
        return -1 if batch_idx == self.end else None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Note the batch and log."""
        self.seen.append((self.current_epoch, batch_idx))
        self.log("loss", loss := self.loss(batch))
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Log where the gradients are whole."""
        self.norms.append(float(sum(p.grad.square().sum() for p in self.parameters() if p.grad is not None)))
        self.log("norm", self.norms[-1])

    def configure_optimizers(self) -> Any:
        """Return the form's optimizer, with a scheduler that steps with it."""
        optimizer = torch.optim.LBFGS(self.parameters(), lr=0.05, max_iter=3) if self.form == "lbfgs" else None
        optimizer = optimizer or torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.5)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Validated(Net):
    """The same, with validation."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Note after how many batches this is."""
        self.validated.append(len(self.seen))


class Unsized:
    """The batches, as many as nobody knows."""

    def __iter__(self) -> Any:
        return iter(BATCHES)


def trainer_of(**flags: Any) -> Trainer:
    """Return a quiet trainer of two epochs in windows of three batches."""
    given = {"max_epochs": 2, "accumulate_grad_batches": WINDOW, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    return Trainer(**{**QUIET, **given, **flags})


def by_hand(end: int, form: str, epochs: int = 2) -> tuple[Net, int, float]:
    """Return the module, its steps and its last rate after a loop without a trainer."""
    net, steps = Net(end, form), 0
    made = net.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    for _ in range(epochs):
        for start in range(0, end, WINDOW):
            window = BATCHES[start : min(start + WINDOW, end)]

            def closure(window: list[Tensor] = window) -> Tensor:
                optimizer.zero_grad()
                losses = [net.loss(batch) / len(window) for batch in window]
                for loss in losses:
                    loss.backward()
                return sum(losses[1:], losses[0]).detach()

            optimizer.step(closure)
            scheduler.step()
            steps += 1
    return net, steps, scheduler.get_last_lr()[0]


@pytest.mark.parametrize("form", ["sgd", "lbfgs", "overridden"])
@pytest.mark.parametrize("make", [lambda: BATCHES, Unsized])
@pytest.mark.parametrize("end", ENDS)
def test_an_open_window_steps(form: str, make: Callable[[], Any], end: int) -> None:
    """Weights, steps and rates are those of a loop whose data ends before the refused batch."""
    net, trainer = Net(end, form), trainer_of()
    trainer.fit(net, make())
    wanted, steps, rate = by_hand(end, form)
    torch.testing.assert_close(net.state_dict(), wanted.state_dict())
    assert sorted(set(net.seen)) == [(epoch, i) for epoch in range(2) for i in range(end)]  # LBFGS runs them again
    assert (trainer.global_step, trainer.current_epoch) == (steps, 2)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate)
    assert list(trainer.history.steps.get("loss", [])) == list(range(steps))


@pytest.mark.filterwarnings("ignore:.*Make it a multiple of that")
@pytest.mark.parametrize(("end", "interval", "validated"), [(5, 1, [3, 5]), (5, 2, [3, 5]), (4, 3, [3]), (1, 1, [1])])
def test_a_validation_due_inside_the_window_runs(end: int, interval: int, validated: list[int]) -> None:
    """A validation that waited for the window's end sees the weights that the refused batch closed it with."""
    net = Validated(end)
    trainer_of(max_epochs=1, val_check_interval=interval).fit(net, BATCHES, BATCHES[:1])
    assert net.validated == validated


@pytest.mark.parametrize("end", [2, 4])
@pytest.mark.parametrize("every", [1, 2])
def test_a_run_resumes_behind_a_refused_batch(tmp_path: Path, end: int, every: int) -> None:
    """Every checkpoint of a run that refuses batches is followed by the rest of that run."""

    def fit(path: Path | None = None) -> tuple[Net, Trainer]:
        saves = ModelCheckpoint(tmp_path, "{epoch}-{step}", every_n_train_steps=every, save_top_k=-1)
        trainer = trainer_of(max_epochs=3, callbacks=[saves], enable_checkpointing=True)
        net = Net(end)
        trainer.fit(net, BATCHES, ckpt_path=path)
        return net, trainer

    whole, first = fit()
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert paths
    for path in paths:
        net, trainer = fit(path)
        torch.testing.assert_close(net.state_dict(), whole.state_dict(), rtol=0, atol=0)
        assert trainer.global_step == first.global_step
        assert net.seen == whole.seen[len(whole.seen) - len(net.seen) :]


def test_gradients_are_clipped_and_shown_once() -> None:
    """What is stepped goes through the hook before the step and clipping, as every step does."""
    net = Net(4)
    trainer = trainer_of(max_epochs=1, gradient_clip_val=1e-3)
    trainer.fit(net, BATCHES)
    assert len(net.norms) == trainer.global_step == 2
    assert sum(p.grad.square().sum() for p in net.parameters() if p.grad is not None) == pytest.approx(1e-6, rel=1e-2)
