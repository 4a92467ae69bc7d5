"""Train a small job with every source of randomness; tests kill it, start it again and compare.

Usage: python resume_program.py FOLDER WORKERS [--slow-save]
"""

from __future__ import annotations

import json
import os
import random
import sys
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lt_core import LightningModule, Trainer, seed_everything
from lt_core.callbacks import ModelCheckpoint


class Augmented(Dataset[Any]):
    """Give distinct samples with fresh noise from torch and python at every look."""

    def __len__(self) -> int:
        return 62

    def __getitem__(self, index: int) -> Any:
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(8, generator=generator)
        return x + 0.1 * torch.randn(8) + 0.01 * random.random(), x.sum().view(1)


class Net(LightningModule):
    """Hold dropout, batch norm, a scheduler and metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.Dropout(0.3), nn.ReLU(), nn.Linear(24, 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("noise", torch.rand(()))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def digest(value: Any) -> Any:
    """Return a value in which equal bits are equal text."""
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), list(value.shape), value.detach().cpu().contiguous().view(-1).tolist().__repr__()]
    if isinstance(value, dict):
        return {str(k): digest(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [digest(v) for v in value]
    return repr(value)


def main(folder: str, workers: int) -> None:
    """Train, resuming from whatever an earlier start left."""
    torch.set_num_threads(1)
    seed_everything(5, verbose=False)
    module = Net()
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=4,
        accumulate_grad_batches=2,
        log_every_n_steps=1,
        val_check_interval=7,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(every_n_train_steps=2, save_top_k=-1), ModelCheckpoint(save_last=True)],
    )
    train = DataLoader(Augmented(), batch_size=4, shuffle=True, num_workers=workers)
    val = DataLoader(Augmented(), batch_size=8)
    pause = float(os.environ.get("STEP_PAUSE", "0"))
    if pause:
        import time

        trainer.on("train_batch_end")(lambda: time.sleep(pause))
    trainer.fit(module, train, val, ckpt_path="last")
    run = trainer._run
    assert run is not None
    result = {
        "weights": digest(module.state_dict()),
        "optimizer": digest(run.engine.optimizer_states()),
        "schedulers": digest([s.scheduler.state_dict() for s in trainer.lr_scheduler_configs]),
        "rng": [digest(torch.get_rng_state()), repr(random.getstate())],
        "metrics": digest(dict(trainer.callback_metrics)),
        "history": {k: [repr(x) for x in v] for k, v in trainer.history.items()},
        "steps": trainer.history.steps,
        "global_step": trainer.global_step,
    }
    with open(os.path.join(folder, "result.json"), "w") as file:
        json.dump(result, file, indent=1, sort_keys=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
