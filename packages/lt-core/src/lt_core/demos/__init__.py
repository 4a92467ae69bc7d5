"""Offer the smallest modules and data that train, for bug reports and tests."""

from lt_core.demos.boring_classes import (
    BoringDataModule,
    BoringModel,
    ManualOptimBoringModel,
    RandomDataset,
    RandomIterableDataset,
)

__all__ = ["BoringDataModule", "BoringModel", "ManualOptimBoringModel", "RandomDataset", "RandomIterableDataset"]
