"""The smallest modules and data, under the path that users' imports name."""

from lt_core.demos.boring import (
    BoringDataModule,
    BoringModel,
    ManualOptimBoringModel,
    RandomDataset,
    RandomIterableDataset,
)

__all__ = ["BoringDataModule", "BoringModel", "ManualOptimBoringModel", "RandomDataset", "RandomIterableDataset"]
