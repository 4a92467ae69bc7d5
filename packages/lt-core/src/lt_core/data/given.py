"""Check the loaders that the user gave, name them, and apply limits to their sizes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import RandomSampler

from lt_core.data.leaf import Leaf
from lt_core.data.loader_leaf import ViewLeaf
from lt_core.notices import PossibleUserWarning, info, warn
from lt_interface.errors import Problem

__all__ = ["advise", "is_empty", "limited", "names_of", "source_problems"]

_INF = float("inf")


def names_of(paths: list[tuple[Any, ...]]) -> list[str]:
    """Return the metric suffix of each loader, by the paths to them."""
    if len(paths) < 2:
        return ["" for _ in paths]
    if all(isinstance(key, str) for path in paths for key in path):
        return ["/" + "/".join(path) for path in paths]
    return [f"/dataloader_idx_{number}" for number in range(len(paths))]


def is_empty(source: Any) -> bool:
    """Return whether a source holds no loader at all: None, or collections of nothing."""
    if isinstance(source, Mapping):
        return all(map(is_empty, source.values()))
    return source is None or (isinstance(source, list | tuple) and all(map(is_empty, source)))


def source_problems(
    loaders: list[Any], paths: list[tuple[Any, ...]], where: str, stage: str, mode: str
) -> list[Problem]:
    """Return what is wrong with the loaders of a stage.

    Args:
        loaders: The loaders.
        paths: The path to each in what the user gave.
        where: How errors name the source.
        stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
        mode: How they are combined.
    """
    problems: list[Problem] = []
    if not loaders and stage == "train":
        problems.append(Problem(where, "at least one loader is needed", "an empty collection", "Give a DataLoader."))
    if stage == "train" and mode == "sequential":
        fix = 'Use mode="max_size_cycle", "max_size" or "min_size".'
        problems.append(Problem(where, "training takes its loaders side by side", 'mode="sequential"', fix))
    if stage == "predict" and mode != "sequential":
        fix = 'Use CombinedLoader(..., mode="sequential").'
        problems.append(Problem(where, "prediction takes one loader after another", f"mode={mode!r}", fix))
    for loader, name in zip(loaders, names_of(paths), strict=True):
        iterable = hasattr(type(loader), "__iter__") or (callable(loader) and not isinstance(loader, type))
        if not iterable or isinstance(loader, Tensor | str | bytes | Mapping):
            fix = "Give a DataLoader, a list of batches, or another iterable of batches."
            if hasattr(type(loader), "__getitem__") and not isinstance(loader, Tensor | str | bytes):
                fix = "A dataset gives samples, not batches: wrap it, DataLoader(dataset, batch_size=...)."
            problems.append(Problem(where + name, "a loader must be iterable", type(loader).__name__, fix))
    return problems


def limited(size: int | float, limit: int | float, where: str, problems: list[Problem]) -> int | float:
    """Return a size under a limit: a whole number is one of batches, a float a fraction."""
    if isinstance(limit, int) or limit in (0.0, _INF):
        return min(size, int(limit) if limit != _INF else _INF)
    if limit == 1.0:
        return size
    if size == _INF:
        fix = "Give a number of batches (an int), or 1.0 for all."
        problems.append(Problem(where, "a fraction needs a loader of known length", f"limit {limit}", fix))
        return 0
    part = int(size * limit)
    if part == 0 and size:
        fix = f"Use at least {1 / size:.4g}, or a number of batches (an int)."
        problems.append(Problem(where, f"a fraction of {size} batches must be at least one", f"limit {limit}", fix))
    return part


def advise(leaves: list[Leaf], stage: str, where: str) -> None:
    """Warn of what is allowed but seldom meant."""
    for leaf in leaves:
        if not isinstance(leaf, ViewLeaf):
            continue
        if stage != "train" and isinstance(leaf.user.sampler, RandomSampler):
            warn(f"{where}: the loader shuffles. Evaluation seldom wants that: use shuffle=False.", PossibleUserWarning)
        if not leaf.user.num_workers and (os.cpu_count() or 1) > 2:
            info(f"{where}: num_workers=0 loads data in the training process; more workers may be faster.")
