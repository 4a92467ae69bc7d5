"""Train the job whose files an earlier release left in ``golden/``, and write down all that it draws.

``python golden_job.py FOLDER`` writes a killed run and what an unbroken one comes to. The files in ``golden/`` stay as
they are: a later release must resume and read them. Files of a newer format get a folder of their own beside them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from logged import logged
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lt_core import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lt_core.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, Timer
from lt_core.loggers import CSVLogger

EPOCHS, SAMPLES, BATCH = 3, 42, 4
KILLED_AT = 17  # batches, two beyond the newest checkpoint, in the middle of the second epoch


class Numbered(Dataset[dict[str, Tensor]]):
    """Data set whose samples carry their index and noise drawn in the worker."""

    def __init__(self, size: int) -> None:
        self.inputs = torch.randn(size, 3, generator=torch.Generator().manual_seed(size))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"index": torch.tensor(index), "x": self.inputs[index], "noise": torch.rand(1) + random.random()}


class Data(LightningDataModule):
    """Data module with workers and a state."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"batch_size": BATCH})
        self.asked = 0

    def train_dataloader(self) -> DataLoader[Any]:
        self.asked += 1
        return DataLoader(Numbered(SAMPLES), BATCH, shuffle=True, num_workers=2)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Numbered(6), BATCH)

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.asked = state_dict["asked"]


class Net(LightningModule):
    """Module with batch norm, dropout, a metric object, a plateau and a step scheduler."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        import torchmetrics

        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Linear(4, width, bias=False), nn.BatchNorm1d(width), nn.Dropout(0.2), nn.Linear(width, 1)
        )
        self.mean = torchmetrics.MeanMetric()
        self.drawn: list[list[Any]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        x = torch.cat([batch["x"], batch["noise"]], 1)
        loss = nn.functional.mse_loss(self.layers(x), batch["x"].sum(1, keepdim=True))
        self.mean(batch["index"].float())
        self.log("mean_index", self.mean, on_step=False, on_epoch=True)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("noise", batch["noise"].mean(), on_epoch=True)
        draws = [torch.rand(1).item(), random.random(), float(np.random.rand())]
        noise = [round(value, 6) for value in batch["noise"].flatten().tolist()]
        self.drawn.append([self.global_step, self.current_epoch, batch_idx, batch["index"].tolist(), noise, draws])
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        x = torch.cat([batch["x"], batch["noise"]], 1)
        self.log("val_loss", nn.functional.mse_loss(self.layers(x), batch["x"].sum(1, keepdim=True)))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01, eps=1e-3)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Counter(Callback):
    """Callback of the user's own, with a state; it ends the process without warning after a given batch."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.killed_at, self.batches = killed_at, 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        self.batches += 1
        if self.batches == self.killed_at:
            time.sleep(1)  # the CSV file gets its first rows
            os._exit(9)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]


def train(root: Path, killed_at: int | None = None, ckpt_path: str | None = None) -> tuple[Trainer, Net]:
    """Train the job in ``root``; with ``killed_at`` it dies after so many batches."""
    seed_everything(5, workers=True, verbose=False)
    net = Net()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        default_root_dir=root,
        logger=CSVLogger(root, name="logs"),
        callbacks=[
            ModelCheckpoint(every_n_train_steps=2, save_last=True, monitor="train_loss", save_top_k=2),
            EarlyStopping("val_loss", patience=5),
            LearningRateMonitor("step"),
            Timer("01:00:00:00"),
            Counter(killed_at),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(net, datamodule=Data(), ckpt_path=ckpt_path)
    return trainer, net


def outcome(trainer: Trainer, net: Net) -> dict[str, Any]:
    """Return what a resumed run must come to: draws and counters exactly, numbers to 1e-6."""
    table = (Path(str(trainer.log_dir)) / "metrics.csv").read_text(encoding="utf-8")
    return {
        "drawn": net.drawn,
        "counters": [trainer.current_epoch, trainer.global_step, trainer._progress.samples],
        "random": [torch.rand(1).item(), random.random(), float(np.random.rand())],
        "weights": {name: value.tolist() for name, value in net.state_dict().items()},
        "metrics": {name: float(value) for name, value in sorted(trainer.callback_metrics.items())},
        "history": {
            name: [list(values), list(logged(trainer).steps[name])] for name, values in logged(trainer).items()
        },
        "table": table.splitlines(),
    }


def write(folder: Path) -> None:
    """Write a killed run into ``folder/run``, and the outcome of an unbroken one into ``folder/outcome.json``."""
    shutil.rmtree(folder, ignore_errors=True)
    whole = folder / "whole"
    (folder / "run").mkdir(parents=True)
    doomed = multiprocessing.get_context("fork").Process(target=train, args=(folder / "run", KILLED_AT))
    doomed.start()
    doomed.join()
    text = json.dumps(outcome(*train(whole)), indent=None, separators=(",", ":"))
    (folder / "outcome.json").write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(whole)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(Path(sys.argv[1]))
