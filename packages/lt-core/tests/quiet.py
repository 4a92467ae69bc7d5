"""Flags of trainers that disturb nobody, and the module that several test files train with them."""

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
