"""Train one fixed job, perhaps die on the way, and print a digest of all that the run has come to.

A program of its own, which the tests start, kill and start again: shuffled data, random augmentation inside the data
set, dropout, batch norm, accumulation over 2 batches, validation, a scheduler, a checkpoint every second step.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lt_core import Callback, LightningModule, Trainer, seed_everything
from lt_core.callbacks import ModelCheckpoint

EPOCHS, SAMPLES, BATCH = 3, 88, 8


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Samples with another random noise every time they are asked for."""

    def __init__(self, size: int, noise: float) -> None:
        numbers = torch.Generator().manual_seed(size)
        self.inputs = torch.randn(size, 6, generator=numbers)
        self.noise = noise

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = self.inputs[index]
        noisy = x + self.noise * torch.randn(6) + self.noise * random.random()
        return noisy, x.sum(0, keepdim=True)


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        time.sleep(0.01)  # so that a kill at a random moment hits a random step
        x, y = batch
        loss = nn.functional.mse_loss(self.layers(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.layers(x), y))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def die() -> None:
    """End at once, as if the machine had lost its power."""
    os.kill(os.getpid(), signal.SIGKILL)


class DieAfter(Callback):
    """Die a given time after the first batch."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        timer = threading.Timer(self.seconds, die)
        timer.daemon = True
        timer.start()


def die_inside_save(nth: int) -> None:
    """Die at the nth call that brings a file to the disk or gives it its name: before it or after it."""
    left = [nth]

    def deadly(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if nth % 2:
                    original(*args, **kwargs)
                die()
            return original(*args, **kwargs)

        return call

    for name in ("fsync", "replace", "rename"):
        setattr(os, name, deadly(getattr(os, name)))


def digest(value: Any) -> str:
    """Return a short digest of any tree, tensors by their bits."""
    hashed = hashlib.sha256()

    def feed(part: Any) -> None:
        if isinstance(part, Tensor):
            hashed.update(part.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(part, dict):
            for key in sorted(part, key=str):
                hashed.update(str(key).encode())
                feed(part[key])
        elif isinstance(part, list | tuple):
            for item in part:
                feed(item)
        else:
            hashed.update(repr(part).encode())

    feed(value)
    return hashed.hexdigest()[:16]


def summary(trainer: Trainer, net: Net) -> dict[str, Any]:
    """Return what must be the same after any number of deaths."""
    return {
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
        "weights": digest(net.state_dict()),
        "optimizer": digest(trainer.optimizers[0].state_dict()),
        "scheduler": digest(trainer.lr_scheduler_configs[0].scheduler.state_dict()),
        "random": digest([torch.get_rng_state(), random.getstate()]),
        "metrics": {key: float(value) for key, value in sorted(trainer.callback_metrics.items())},
        "history": digest({key: [values, trainer.history.steps[key]] for key, values in trainer.history.items()}),
        "table": hashlib.sha256((Path(trainer.log_dir) / "metrics.csv").read_bytes()).hexdigest()[:16],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--die-after", type=float, default=None)
    parser.add_argument("--die-inside-save", type=int, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seed_everything(3, workers=True, verbose=False)
    callbacks: list[Callback] = [ModelCheckpoint(every_n_train_steps=2, save_last=True, monitor=None)]
    if given.die_after is not None:
        callbacks.append(DieAfter(given.die_after))
    if given.die_inside_save is not None:
        die_inside_save(given.die_inside_save)
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=2,
        log_every_n_steps=1,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    train = DataLoader(Noisy(SAMPLES, 0.3), BATCH, shuffle=True, num_workers=given.workers)
    val = DataLoader(Noisy(40, 0.0), BATCH)
    net = Net()
    trainer.fit(net, train, val, ckpt_path="last")
    print(json.dumps(summary(trainer, net)))


if __name__ == "__main__":
    main()
