"""Module, data module and helpers that the tests of the command line name by their paths."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lt_core import Callback, LightningDataModule, LightningModule
from lt_core.cli import LRSchedulerCallable, OptimizerCallable

# As on a command line: nothing is shown or kept but what the test is about.
FEW = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
FEW += ["--trainer.accelerator=cpu", "--trainer.num_sanity_val_steps=0"]
BARE = [*FEW, "--trainer.logger=false", "--trainer.enable_checkpointing=false"]


class Part(nn.Module):
    def __init__(self, width: int = 4, slope: float = 0.5) -> None:
        super().__init__()
        self.slope = slope
        self.layer = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(self.layer(x), self.slope)


class Net(LightningModule):
    """Module with arguments of several kinds and no optimizer of its own."""

    def __init__(self, width: int = 4, scale: float = 1.0, name: str = "net", part: Part | None = None) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["part"])
        self.scale = scale
        self.part = part or Part(width)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.part(batch).pow(2).mean() * self.scale
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val", self.part(batch).mean())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test", self.part(batch).mean())

    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self.part(batch)


class Own(Net):
    """Module with an optimizer of its own."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.25)


class Injected(Net):
    """Module that is given what makes its optimizer and scheduler."""

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.SGD,
        scheduler: LRSchedulerCallable = torch.optim.lr_scheduler.ConstantLR,
    ) -> None:
        super().__init__()
        self.optimizer, self.scheduler = optimizer, scheduler

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        return [optimizer], [self.scheduler(optimizer)]


class Late(Net):
    """Module that creates its layers when the trainer asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.more: Any = None

    def configure_model(self) -> None:
        if self.more is None:
            self.more = nn.Linear(2, 2)


class Rows(LightningDataModule):
    """Random rows, shuffled: what is trained depends on the seed."""

    def __init__(self, width: int = 4, batch_size: int = 2, root: str | None = None) -> None:
        super().__init__()
        self.width, self.batch_size = width, batch_size
        self.classes = 7

    def train_dataloader(self) -> Any:
        return DataLoader(list(torch.randn(8, self.width)), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(list(torch.randn(4, self.width)), batch_size=self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


class Noted(Callback):
    """Callback with an argument."""

    def __init__(self, word: str = "none") -> None:
        self.word = word


class Recorder:
    """Logger that is only known by its path: no class of ours, no name in the registry."""

    name = version = directory = None

    def __init__(self, tag: str, level: int = 1) -> None:
        self.tag, self.level, self.rows = tag, level, []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(metrics)

    def log_hyperparams(self, params: Any) -> None:
        pass

    def flush(self) -> None:
        pass

    def finish(self, status: Any) -> None:
        pass


def net(width: int = 4, doubled: bool = False) -> Net:
    """Return a module, as a function in the place of a class does."""
    return Net(2 * width if doubled else width)


@contextmanager
def argv(*words: str) -> Iterator[None]:
    """Run with a command line."""
    before, sys.argv = sys.argv, ["main.py", *words]
    try:
        yield
    finally:
        sys.argv = before


def written(path: Path, text: str) -> str:
    """Write a configuration; return its path."""
    path.write_text(text, encoding="utf-8")
    return str(path)
