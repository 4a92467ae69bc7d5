"""Check in which order and how often things happen around the step: unscaling, hooks, clipping, schedulers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET, Noting
from torch import Tensor

from lt_core import Trainer
from lt_interface import PlainPrecision

BATCHES = [torch.ones(1, 1)] * 4


class Scaled(PlainPrecision):
    """Precision that scales, and notes when it unscales and steps."""

    name = "32-noting"
    scales = True

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def scale(self, loss: Tensor) -> Tensor:
        return loss * 2

    def unscale(self, optimizer: Any) -> None:
        self.calls.append("unscale")
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad.div_(2)

    def step(self, optimizer: Any, closure: Any = None, **kwargs: Any) -> bool:
        self.calls.append("step")
        optimizer.step(*([] if closure is None else [closure]), **kwargs)
        return True


class Net(Noting):
    """Module that notes its hooks around the step."""

    def __init__(self, calls: list[str], optimizer: str) -> None:
        super().__init__()
        self.calls, self.optimizer = calls, optimizer

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.calls.append("hook")

    def configure_gradient_clipping(self, *args: Any) -> None:
        self.calls.append("clip")

    def configure_optimizers(self) -> Any:
        if self.optimizer == "LBFGS":
            return torch.optim.LBFGS(self.parameters(), lr=0.01, max_iter=3, tolerance_grad=-1, tolerance_change=-1)
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Overriding(Net):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("kind", ["SGD", "overriding", "LBFGS"])
def test_gradients_are_unscaled_once_before_anybody_looks(kind: str, window: int) -> None:
    """Once a step, or once for each of LBFGS's evaluations: before the hook, which comes before clipping."""
    calls: list[str] = []
    net = (Overriding if kind == "overriding" else Net)(calls, kind)
    flags = {**QUIET, "plugins": [Scaled(calls)], "accumulate_grad_batches": window}
    Trainer(**flags, max_epochs=1).fit(net, BATCHES, BATCHES[:1])
    steps = -(-4 // window)
    one = ["unscale", "hook", "clip"]
    expected = {"SGD": [*one, "step"], "overriding": ["step", *one], "LBFGS": ["step", *one * 3]}[kind]
    assert calls == expected * steps


@pytest.mark.parametrize(
    ("batches", "window", "frequency", "steps"),
    [
        (2, 1, 3, [3, 6]),
        (16, 4, 2, [2, 4, 6, 8, 10, 12]),
        (10, 1, 4, [4, 8, 12, 16, 20, 24, 28]),
        (5, 2, 2, [2, 4, 6, 8]),
    ],
)
@pytest.mark.parametrize("plateau", [False, True])
def test_the_frequency_of_a_step_scheduler_counts_optimizer_steps(
    batches: int, window: int, frequency: int, steps: list[int], plateau: bool, tmp_path: Path
) -> None:
    """Over epochs, windows and a resume: neither batches nor each epoch's own."""
    stepped: list[int] = []

    class Schedules(Noting):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
            scheduler: Any = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            if plateau:
                scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": frequency, "monitor": "val"}]

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            stepped.append(self.trainer.global_step)

        def on_train_start(self) -> None:
            self.trainer.callback_metrics["val"] = torch.tensor(1.0)

    data = [torch.ones(1, 1)] * batches
    run, path = Trainer(**QUIET, max_steps=3, accumulate_grad_batches=window, max_epochs=3), tmp_path / "a.ckpt"
    run.fit(Schedules(), data, BATCHES[:1])
    run.save_checkpoint(path)
    run = Trainer(**QUIET, accumulate_grad_batches=window, max_epochs=3)
    run.fit(Schedules(), data, BATCHES[:1], ckpt_path=path)
    assert stepped == steps


@pytest.mark.parametrize(("kind", "interval"), [("plateau", "epoch"), ("plateau", "step"), ("plain", "step")])
def test_only_a_plateau_scheduler_by_step_is_looked_after_at_each_batch(kind: str, interval: str) -> None:
    """Any other scheduler lets the loop run on until something is due: here the epoch's end."""
    looked_up: list[int] = []

    class Schedules(Noting):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
            scheduler: Any = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            if kind == "plateau":
                scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return [optimizer], [{"scheduler": scheduler, "interval": interval, "monitor": "val"}]

        def on_train_epoch_start(self) -> None:
            self.trainer.callback_metrics["val"] = torch.tensor(1.0)

    def noted(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name == "run_due":
            looked_up.append(frame.f_locals["index"])

    outer = sys.getprofile()
    sys.setprofile(noted)
    try:
        Trainer(**QUIET, max_epochs=1).fit(Schedules(), BATCHES, BATCHES[:1])
    finally:
        sys.setprofile(outer)
    assert looked_up == ([0, 1, 2, 3] if (kind, interval) == ("plateau", "step") else [3])
