"""Define modules and data that do as little as can be: 32 numbers in, 2 out, none mean anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from lt_core.datamodule import LightningDataModule
from lt_core.module import LightningModule

__all__ = ["BoringDataModule", "BoringModel", "ManualOptimBoringModel", "RandomDataset", "RandomIterableDataset"]


class RandomDataset(Dataset[Tensor]):
    """Dataset of random vectors.

    Args:
        size: Numbers in a vector.
        length: How many vectors.
    """

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index]

    def __len__(self) -> int:
        return self.len


class RandomIterableDataset(IterableDataset[Tensor]):
    """Random vectors, new ones each time.

    Args:
        size: Numbers in a vector.
        count: How many vectors.
    """

    def __init__(self, size: int, count: int) -> None:
        self.size = size
        self.count = count

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.count):
            yield torch.randn(self.size)


class BoringModel(LightningModule):
    """One linear layer, trained on noise: the start of a bug report.

    Its steps take a ``batch`` of vectors ``x`` of 32 numbers, and use no ``batch_idx``.

    >>> from lt_core import Trainer
    >>> Trainer(fast_dev_run=True, enable_progress_bar=False).fit(BoringModel())
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        out: Tensor = self.layer(x)
        return out

    def loss(self, predictions: Tensor, target: Tensor | None = None) -> Tensor:
        """Return the mean squared distance of ``predictions`` to ones, or to a ``target`` of the same shape."""
        target = torch.ones_like(predictions) if target is None else target
        return nn.functional.mse_loss(predictions, target)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss in a dict."""
        return {"loss": self.loss(self(batch))}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss under ``"x"``."""
        return {"x": self.loss(self(batch))}

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss under ``"y"``."""
        return {"y": self.loss(self(batch))}

    def configure_optimizers(self) -> Any:
        """Return SGD and a scheduler by epoch."""
        optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)]

    def train_dataloader(self) -> Any:
        """Return 64 random vectors, one a batch."""
        return DataLoader(RandomDataset(32, 64))

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class ManualOptimBoringModel(BoringModel):
    """BoringModel with backward and step in ``training_step``."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Run one step of the optimizer and return the loss."""
        optimizer = self.optimizers()
        loss = self.loss(self(batch))
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class BoringDataModule(LightningDataModule):
    """Random vectors for all stages."""

    def __init__(self) -> None:
        super().__init__()
        self.random_full: RandomDataset | None = None

    def prepare_data(self) -> None:
        """Make the data, as a download would."""
        self.random_full = RandomDataset(32, 64 * 4)

    def setup(self, stage: str) -> None:
        """Cut the data into a part for each stage."""
        full = self.random_full if self.random_full is not None else RandomDataset(32, 64 * 4)
        if stage == "fit":
            self.random_train = Subset(full, range(64))
        if stage in ("fit", "validate"):
            self.random_val = Subset(full, range(64, 64 * 2))
        if stage == "test":
            self.random_test = Subset(full, range(64 * 2, 64 * 3))
        if stage == "predict":
            self.random_predict = Subset(full, range(64 * 3, 64 * 4))

    def train_dataloader(self) -> Any:
        """Return the training part, one vector a batch."""
        return DataLoader(self.random_train)

    def val_dataloader(self) -> Any:
        """Return the validation part, one vector a batch."""
        return DataLoader(self.random_val)

    def test_dataloader(self) -> Any:
        """Return the test part, one vector a batch."""
        return DataLoader(self.random_test)

    def predict_dataloader(self) -> Any:
        """Return the part to predict on, one vector a batch."""
        return DataLoader(self.random_predict)
