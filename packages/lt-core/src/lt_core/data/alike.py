"""Compare what ranks must have alike, before they drift apart and wait for one another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lt_interface.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["check_alike"]


def check_alike(run: Run, where: str, what: str, count: int | float) -> None:
    """Compare a count over the ranks; each calls it at the same place.

    Args:
        run: The run.
        where: The loader's hook, for the message.
        what: What is counted.
        count: How many this rank has; inf where that is unknown.

    Raises:
        ConfigError: On every rank, if they differ.
    """
    if run.world.size == 1:
        return
    mine = torch.tensor([-1 if count == math.inf else int(count)], device=run.device)
    counts = run.collectives.all_gather(mine).flatten().tolist()
    if len(set(counts)) == 1:
        return
    ranks = {n: [str(rank) for rank, other in enumerate(counts) if other == n] for n in dict.fromkeys(counts)}
    got = (f"{'an unknown number' if n < 0 else n} on rank {', '.join(each)}" for n, each in ranks.items())
    fix = "Give each rank loaders alike: one dataset, which the trainer shares out, or limit_train_batches=."
    raise ConfigError(Problem(where, f"every rank must have equally many {what}", ", ".join(got), fix))
