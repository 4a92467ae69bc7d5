"""Program whose ranks a launcher starts, how it is started, and what of it runs still."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = "LAUNCHED_JOB"
PROGRAM = """
import json, os, sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from lt_core import LightningModule, Trainer, seed_everything

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def fail(self, place):
        if os.environ.get("FAULT", "").endswith(f"-{self.global_rank}-{place}"):
            if "FAULT_AT" in os.environ:
                open(os.environ["FAULT_AT"], "w").write(str(time.time()))
            if os.environ["FAULT"].startswith("kill"):
                os.kill(os.getpid(), 9)
            raise ValueError(f"no {place} here")

    def setup(self, stage):
        self.fail("setup")

    def on_save_checkpoint(self, checkpoint):
        self.fail("save")

    def training_step(self, batch, batch_idx):
        if batch_idx == 2:
            self.fail("step")
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.fail("validation")
        self.log("val", self.layer(batch[0]).square().mean(), sync_dist=True)

    def predict_step(self, batch, batch_idx):
        return batch[0][:, 0]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

def main(strategy, devices, workers):
    seed_everything(1, verbose=False)
    samples = torch.arange(148.0).reshape(37, 4) / 148
    def loader(shuffle):
        return DataLoader(TensorDataset(samples), batch_size=8 // devices, shuffle=shuffle, num_workers=workers)
    net = Net()
    trainer = Trainer(max_epochs=2, accelerator="cpu", devices=devices, strategy=strategy, logger=False,
                      enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(net, loader(True), loader(False))
    (values,) = trainer.validate(net, loader(False), verbose=False)
    rows = torch.cat(trainer.predict(net, loader(False))).tolist()
    if trainer.is_global_zero:
        assert rows == samples[:, 0].tolist(), rows
        print(json.dumps([net.layer.weight.tolist(), values, trainer.global_step]))
    else:
        assert set(rows) < set(samples[:, 0].tolist()), rows  # its own

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
"""


def start(folder: Path, *args: str, program: str = PROGRAM, **environment: str) -> subprocess.Popen[str]:
    """Start a program, with arguments and variables, in a session of its own, so that what it leaves can be found."""
    script = folder / "train.py"
    script.write_text(program, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, str(script), *args],
        env={**os.environ, FOLDER: str(folder), **environment},
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def left(folder: Path) -> list[int]:
    """Return the processes of the program that run still: new interpreters do not name it, but have its variable."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{FOLDER}={folder}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:  # it has ended meanwhile, or is another user's
            continue
    return found
