"""The module, under the path that users' imports name."""

from lt_core.module import LightningModule

__all__ = ["LightningModule"]
