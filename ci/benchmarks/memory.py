"""Measure how much a long run's memory grows: 200,000 steps with 5 logs each, the first 2,000 left out."""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from lt_core import LightningModule, Trainer
from lt_core.loggers import CSVLogger

ALLOWED = 5.0
SETTLED = 2_000


def resident() -> float:
    """Return this process's resident memory in megabytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


class Batches:
    """Hand out one batch many times, and note the memory on the way."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.batch = (torch.randn(8, 4), torch.randn(8, 1))
        self.sizes: list[tuple[int, float]] = []

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        every = max(self.steps // 20, 1)
        for step in range(self.steps):
            if step == SETTLED or (step > SETTLED and step % every == 0) or step == self.steps - 1:
                gc.collect()
                self.sizes.append((step, resident()))
            yield self.batch


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.layer(x), y)
        for i in range(5):
            self.log(f"value_{i}", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.001)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--check", action="store_true", help="fail if it grows more than allowed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    batches = Batches(given.steps)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            logger=CSVLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(Net(), batches)
    first = batches.sizes[0][1]
    grown = max(size for _, size in batches.sizes) - first
    for step, size in batches.sizes:
        print(f"step {step:8,}  {size:8.1f} MB  {size - first:+6.2f}")
    print(
        f"grew {grown:.2f} MB over {given.steps:,} steps with 5 logs each, in {time.perf_counter() - begun:.0f} s",
        end="",
    )
    print(f"  allowed {ALLOWED:g}")
    return int(grown > ALLOWED and given.check)


if __name__ == "__main__":
    sys.exit(main())
