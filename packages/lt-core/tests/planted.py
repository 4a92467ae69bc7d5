"""Trainings of which one part is slow, each in a way of its own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from quiet import SILENT
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lt_core import LightningModule, Trainer
from lt_core.callbacks import ModelCheckpoint
from lt_core.loggers import Logger
from lt_core.profilers import SimpleProfiler

SLOW = 0.05  # seconds: far above what a step takes on a busy machine


def pause(seconds: float) -> None:
    """Wait, but not at all for no time: even that gives way to other processes."""
    if seconds:
        time.sleep(seconds)


class Samples(Dataset[Tensor]):
    """Dataset of rows, each of which may take its time."""

    def __init__(self, length: int, seconds: float = 0.0) -> None:
        self.length, self.seconds = length, seconds

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        pause(self.seconds)
        return torch.full((8,), float(index))


class Net(LightningModule):
    """Module whose steps are quick but for what a test asks for.

    Args:
        transform: Seconds of its transform on each batch.
        logs: How many values it logs a step.
        validation: Seconds of a validation step.
        hook: Seconds of its hook after each batch.
    """

    def __init__(self, transform: float = 0, logs: int = 0, validation: float = 0, hook: float = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)
        self.transform, self.logs, self.validation, self.hook = transform, logs, validation, hook

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        pause(self.transform)
        return batch

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).square().mean()
        for i in range(self.logs):
            self.log(f"value_{i}", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pause(self.validation)

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        pause(self.hook)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


class SlowLogger(Logger):
    """Logger that is slower than the training."""

    name, version = "slow", "0"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        time.sleep(SLOW)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        return None


def fit(folder: Path, module: Any, data: Any, profiler: Any = None, val: Any = None, **flags: Any) -> Trainer:
    """Train one epoch, with a simple profiler if no other is given."""
    chosen = {**SILENT, "max_epochs": 1, "num_sanity_val_steps": 0, "logger": False, **flags}
    if val is None:
        chosen["limit_val_batches"] = 0
    chosen.setdefault("enable_checkpointing", False)
    profiler = SimpleProfiler(dirpath=folder) if profiler is None else profiler
    trainer = Trainer(**chosen, profiler=profiler, default_root_dir=folder)
    trainer.fit(module, data, val)
    return trainer


def loader(batches: int = 8, size: int = 16, seconds: float = 0.0, **flags: Any) -> DataLoader[Tensor]:
    """Return a loader of quick or slow samples."""
    return DataLoader(Samples(batches * size, seconds / size), size, **flags)


class SlowSaves(ModelCheckpoint):
    """Checkpoint callback whose files take long."""

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        time.sleep(SLOW)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)


def slow_loader(folder: Path) -> Trainer:
    return fit(folder, Net(), loader(seconds=SLOW))


def slow_transform(folder: Path) -> Trainer:
    return fit(folder, Net(transform=SLOW), loader())


def tiny_batches(folder: Path) -> Trainer:
    return fit(folder, Net(), loader(batches=200, size=1))


def big_logging(folder: Path) -> Trainer:
    return fit(folder, Net(logs=1000), loader(batches=15), logger=True, log_every_n_steps=1)


def slow_validation(folder: Path) -> Trainer:
    return fit(folder, Net(validation=SLOW), loader(), val=loader())


def slow_saves(folder: Path) -> Trainer:
    saves = SlowSaves(every_n_train_steps=1, save_top_k=-1)
    return fit(folder, Net(), loader(), callbacks=[saves], enable_checkpointing=True)
