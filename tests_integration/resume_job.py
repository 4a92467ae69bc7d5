"""Program that trains two ranks, resumes them inside an epoch, and writes what both have come to on each rank."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from rank_cases import QUIET, Net, samples
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lt_core import Callback, Trainer


class Noisy(Dataset[Any]):
    """Samples that are augmented at random."""

    def __init__(self) -> None:
        self.samples = samples(44)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        x, y = self.samples[index]
        return x + 0.1 * torch.randn(4) * random.random(), y


class Dropping(Net):
    """Network with dropout, batch norm, and noise of its own, that logs its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss([nn.functional.dropout(batch[0], 0.3) + 0.01 * torch.randn_like(batch[0]), batch[1]])
        self.log("loss", loss, on_epoch=True, on_step=False, sync_dist=True)
        return loss

    def forward(self, x: Any) -> Any:
        return self.last(torch.tanh(self.middle(self.norm(self.first(x)))))


class SaveAt(Callback):
    """A checkpoint after one batch of the second epoch.

    Args:
        path: Where it goes.
        batch: The batch.
    """

    def __init__(self, path: Path, batch: int) -> None:
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (1, self.batch):
            trainer.save_checkpoint(self.path)


def twice(strategy: str, workers: int, folder: Path, **flags: Any) -> list[Any]:
    """Train with a save in the second epoch, then resume from there; return what each has come to.

    Args:
        strategy: The trainer's flag.
        workers: How many the loader has.
        folder: Where the checkpoint goes.
        flags: More of the trainer's flags.
    """
    found = []
    for path in (None, folder / "a.ckpt"):
        torch.manual_seed(40 + int(os.environ.get("RANK", "0")) + bool(path))
        module, callbacks = Dropping(), [SaveAt(folder / "a.ckpt", 2)] if path is None else []
        trainer = Trainer(strategy=strategy, devices=2, max_epochs=3, callbacks=callbacks, **QUIET, **flags)
        trainer.fit(module, DataLoader(Noisy(), 4, shuffle=True, num_workers=workers), ckpt_path=path)
        weights = b"".join(value.numpy().tobytes() for value in module.state_dict().values())
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        found.append([hashlib.sha256(weights).hexdigest(), metrics, trainer.global_step])
    return found


def main(strategy: str, workers: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    found = twice(strategy, int(workers), Path(folder))
    Path(folder, f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
