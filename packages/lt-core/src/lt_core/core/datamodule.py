"""The data module, under the path that users' imports name."""

from lt_core.datamodule import LightningDataModule

__all__ = ["LightningDataModule"]
