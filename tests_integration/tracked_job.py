"""Train a tiny network that logs ten values a step to a tracker: a program that tests start, kill and start again."""

from __future__ import annotations

import argparse
import os
import signal
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lt_core import LightningModule, Trainer
from lt_core.callbacks import ModelCheckpoint
from lt_interface import registry


class Net(LightningModule):
    def __init__(self, sleep: float = 0.0, die_at: int | None = None, values: int = 10) -> None:
        super().__init__()
        self.save_hyperparameters("values")
        self.layer = nn.Linear(4, 1)
        self.sleep, self.die_at, self.values = sleep, die_at, values

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        if self.global_step == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.sleep)
        loss = self.layer(batch).square().mean()
        for i in range(self.values):
            self.log(f"value_{i}", loss + i)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def batches(steps: int) -> list[Tensor]:
    numbers = torch.Generator().manual_seed(0)
    return list(torch.randn(steps, 8, 4, generator=numbers))


def make_trainer(logger: Any, folder: str, save_every: int | None = None, log_every: int = 1) -> Trainer:
    quiet: dict[str, Any] = dict.fromkeys(["enable_progress_bar", "enable_model_summary"], False)
    callbacks = [ModelCheckpoint(every_n_train_steps=save_every)] if save_every else []
    return Trainer(
        max_epochs=1, accelerator="cpu", logger=logger, log_every_n_steps=log_every, default_root_dir=folder,
        callbacks=callbacks, enable_checkpointing=bool(save_every), **quiet,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logger")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--sleep", type=float, default=0.0)
    parser.add_argument("--die-at", type=int, default=None)
    parser.add_argument("--save-every", type=int, default=None)
    parser.add_argument("--log-every", type=int, default=1)
    parser.add_argument("--option", action="append", default=[], help="name=value, for the logger")
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    warnings.simplefilter("default")
    options = dict(option.split("=", 1) for option in given.option)
    if "offline" in options:
        options["offline"] = True  # type: ignore[assignment]
    logger = registry.loggers.get(given.logger)(save_dir="logs", **options)
    trainer = make_trainer(logger, ".", given.save_every, given.log_every)
    trainer.fit(Net(given.sleep, given.die_at), batches(given.steps), ckpt_path="last" if given.save_every else None)
    print("done", trainer.global_step)


if __name__ == "__main__":
    main()
