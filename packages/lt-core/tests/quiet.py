"""Flags of trainers that disturb nobody, and the modules that several test files train with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lt_core import LightningModule

# Nothing is shown; what is logged and kept is the test's own subject.
SILENT: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
# Nothing is shown, logged or kept.
QUIET: dict[str, Any] = {**SILENT, "logger": False, "enable_checkpointing": False}


class Noting(LightningModule):
    """Module that logs the sum of each batch, and validates."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("sum", batch.sum())
        loss: Tensor = self.layer(batch).sum()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val", self.layer(batch).sum())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Idle(LightningModule):
    """Module whose steps log nothing and learn nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self.layer(batch).sum() * 0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Numbers(LightningModule):
    """Module that logs each batch's number, and calls what the test wants."""

    def __init__(self, also: Any = None) -> None:
        super().__init__()
        self.layer, self.also = nn.Linear(1, 1), also

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.log("x", batch.mean())
        if self.also is not None:
            self.also(self)
        return self.layer(batch).sum()

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("y", batch.mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Sized(Numbers):
    """Module that logs each batch's number, and has a hyper-parameter."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(1, width)
