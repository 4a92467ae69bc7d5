"""Give loaders another batch size: copies of the user's, with all that is not about it as it was."""

from __future__ import annotations

import copy
from typing import Any

from torch.utils.data import BatchSampler, DataLoader

from lt_core.data.combined import CombinedLoader, flatten, outline, unflatten
from lt_interface.errors import Problem

__all__ = ["batch_size_of", "batch_size_problems", "resized"]


def resized(tree: Any, size: int) -> Any:
    """Return loaders like the given ones whose batches have another size.

    Args:
        tree: A DataLoader, or what holds such: lists, dicts, a CombinedLoader; without `batch_size_problems`.
        size: Samples of a batch.

    Example:
        >>> resized({"a": DataLoader(range(6), batch_size=2)}, 3)["a"].batch_size
        3
    """
    if isinstance(tree, CombinedLoader):
        combined = copy.copy(tree)
        combined.iterables = resized(tree.iterables, size)
        combined.flattened, combined.paths = flatten(combined.iterables)
        return combined
    return unflatten(outline(tree), (_resized(loader, size) for loader in flatten(tree)[0]))


def _resized(user: DataLoader[Any], size: int) -> DataLoader[Any]:
    loader = copy.copy(user)
    batches = BatchSampler(user.sampler, size, user.drop_last)
    loader.__dict__.update(batch_size=size, batch_sampler=batches, _iterator=None, _IterableDataset_len_called=None)
    return loader


def batch_size_of(loader: Any) -> int | None:
    """Return how many samples a batch of a loader has; None where that is not the loader's to say."""
    if not isinstance(loader, DataLoader):
        return None
    batches: Any = loader.batch_sampler
    size: int | None = batches.batch_size if type(batches) is BatchSampler else loader.batch_size
    return size


def batch_size_problems(loaders: list[Any], where: str) -> list[Problem]:
    """Return why loaders cannot have another batch size.

    Args:
        loaders: The loaders.
        where: How errors name their source.
    """
    fix = "Give a DataLoader with batch_size=...; how many samples a batch of another kind has, only you know."
    rule, problems = "each loader must be a DataLoader with a batch size", list[Problem]()
    for loader in (loader for loader in loaders if batch_size_of(loader) is None):
        got = type(loader).__name__
        if isinstance(loader, DataLoader):
            sampler = loader.batch_sampler
            got += " with " + ("batch_size=None" if sampler is None else type(sampler).__name__)
        problems.append(Problem(where, rule, got, fix))
    return problems
