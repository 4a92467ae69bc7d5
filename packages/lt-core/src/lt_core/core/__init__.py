"""The module and the data module, under the path that users' imports name."""

from lt_core.datamodule import LightningDataModule
from lt_core.module import LightningModule
from lt_core.names import finder

__all__ = ["LightningDataModule", "LightningModule"]

__getattr__ = finder(__name__)
