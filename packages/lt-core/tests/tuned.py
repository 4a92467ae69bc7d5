"""A job for the tests of what is found before training, and all that it may not change."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quiet import SILENT
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from lt_core import LightningModule, Trainer


class Noisy(Dataset[Tensor]):
    """Dataset that draws from generators of its own and counts what it gave."""

    def __init__(self, size: int = 32) -> None:
        self.size, self.given = size, 0
        self.numpy, self.torch, self.python = np.random.default_rng(1), torch.Generator(), random.Random(2)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        self.given += 1
        noise = self.numpy.random() + torch.rand((), generator=self.torch).item() + self.python.random()
        return torch.full((4,), index / 32) + 0.01 * noise


class Net(LightningModule):
    """Module with all that a trial moves on: layers, buffers, attributes, and every global generator.

    Args:
        most: The largest batch that fits into its memory.
    """

    def __init__(self, most: int = 10**6, lr: float = 0.01, batch_size: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.most, self.lr, self.batch_size = most, lr, batch_size
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1))
        self.calls, self.losses, self.total = 0, list[float](), torch.zeros(1)
        self.frozen = nn.Dropout().eval()
        self.error: BaseException | None = None
        self.sizes: list[int] = []
        self.data = Noisy()
        self.order = torch.Generator().manual_seed(7)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.calls += 1
        if self.error is not None and self.calls > 2:
            raise self.error
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        noise = 0.01 * (random.random() + np.random.rand())
        loss = (self.layers(batch) - batch.sum(1, keepdim=True)).pow(2).mean() + noise
        self.losses.append(loss.item())
        self.total += loss.detach()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        if len(batch) > self.most:
            raise MemoryError
        self.log("val", self.layers(batch).mean())

    test_step = validation_step

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if len(batch) > self.most:
            raise MemoryError
        return self.layers(batch)

    def train_dataloader(self) -> Any:
        return self.loader()

    def val_dataloader(self) -> Any:
        return DataLoader(self.data, self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader

    def loader(self) -> Any:
        self.sizes.append(self.batch_size)
        sampler = RandomSampler(self.data, generator=self.order)
        return DataLoader(self.data, self.batch_size, sampler=sampler)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def states(trainer: Trainer, net: Any, folder: Path) -> dict[str, Any]:
    """Return all that a search may not change, as values that can be compared."""
    generators = net.data.numpy, net.data.torch, net.data.python
    return {
        "weights": {name: tensor.numpy().tobytes() for name, tensor in net.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.numpy().tobytes() for p in net.parameters()],
        "modes": [module.training for module in net.modules()],
        "attributes": (net.calls, list(net.losses), net.total.item(), dict(net.hparams), list(net.sizes)),
        "random": (random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tobytes()),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "order": net.order.get_state().numpy().tobytes(),
        "data": (net.data.given, str(generators[0].bit_generator.state), generators[2].getstate()),
        "data's torch": generators[1].get_state().numpy().tobytes(),
        "trainer": (trainer.state, trainer.global_step, trainer.current_epoch, dict(trainer.history), trainer.run_of()),
        "files": sorted(str(path) for path in folder.rglob("*")),
    }


class Watched(Trainer):
    """Trainer whose private parts can be compared."""

    def run_of(self) -> dict[str, Any]:
        """Return what the trainer holds: values as they are, all else by who it is."""
        plain = (int, float, str, bool, type(None))
        return {key: value if isinstance(value, plain) else id(value) for key, value in vars(self).items()}


def trainer(folder: Path, **flags: Any) -> Watched:
    """Return a silent trainer that works in a folder."""
    os.chdir(folder)
    return Watched(**{**SILENT, "default_root_dir": folder, "max_epochs": 2, "num_sanity_val_steps": 0, **flags})
