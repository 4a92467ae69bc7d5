"""PyTorch Lightning itself reads and resumes the files that TorchCheckpointIO writes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lt_core import Callback, LightningModule, Trainer
from lt_core.checkpoint import TorchCheckpointIO

# An interpreter that has Lightning; this one, where it is installed beside us.
LIGHTNING = os.environ.get("LIGHTNING_PYTHON") or sys.executable
HERE = sys.executable != LIGHTNING or importlib.util.find_spec("pytorch_lightning") is not None

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not HERE, reason="pytorch-lightning is not installed, and LIGHTNING_PYTHON names no interpreter"
    ),
]

RESUMED = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
try:
    import pytorch_lightning as pl
except ImportError:
    import lightning.pytorch as pl

class Net(pl.LightningModule):
    def __init__(self, size=1):
        super().__init__()
        self.save_hyperparameters()
        self.layer, self.batches = torch.nn.Linear(1, size), []
    def training_step(self, batch, batch_idx):
        self.batches.append((self.current_epoch, batch_idx))
        return self.layer(batch).pow(2).mean()
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

net = Net()
trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
                     enable_progress_bar=False, enable_model_summary=False, default_root_dir=sys.argv[2])
data = torch.utils.data.DataLoader(torch.arange(4.0)[:, None])
trainer.fit(net, data, ckpt_path=sys.argv[1])
loaded = Net.load_from_checkpoint(sys.argv[1], weights_only=True)
state = trainer.optimizers[0].state[net.layer.weight]
print(json.dumps([trainer.global_step, net.batches, float(net.layer.weight), float(loaded.layer.weight),
                  float(state["step"]), trainer.optimizers[0].param_groups[0]["lr"], loaded.hparams.size]))
"""


class Net(LightningModule):
    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(1, size)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).pow(2).mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


@pytest.mark.parametrize(("step", "left"), [(8, [[2, i] for i in range(4)]), (4, None)])
def test_lightning_goes_on_from_a_file_of_ours(tmp_path: Path, step: int, left: Any) -> None:
    """At the end of an epoch the rest that Lightning trains is the rest that we would have, to the last digits."""

    class Saves(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.global_step == step:
                self.weight = pl_module.layer.weight.item()
                trainer.request_checkpoint(tmp_path / "x.ckpt")

    torch.manual_seed(3)
    net, saves = Net(), Saves()
    flags: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, callbacks=[saves], plugins=TorchCheckpointIO(), **flags
    )
    trainer.fit(net, torch.utils.data.DataLoader(torch.arange(4.0)[:, None]))  # type: ignore[arg-type]
    script = tmp_path / "resumed.py"
    script.write_text(RESUMED, encoding="utf-8")
    command = [LIGHTNING, str(script), str(tmp_path / "x.ckpt"), str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or sys.executable == LIGHTNING}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    steps, batches, weight, loaded, optimizer_steps, rate, size = json.loads(done.stdout.splitlines()[-1])
    assert (steps, optimizer_steps, size) == (12, 12, 1)
    assert batches == (left or [[e, i] for e in (1, 2) for i in range(4)])
    assert loaded == saves.weight
    assert weight == pytest.approx(net.layer.weight.item(), rel=1e-6)
    assert rate == pytest.approx(trainer.optimizers[0].param_groups[0]["lr"])
