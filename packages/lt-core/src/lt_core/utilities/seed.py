"""Random numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lt_core.state.rng import isolate, seed_everything, seed_process

__all__ = ["isolate_rng", "pl_worker_init_function", "reset_seed", "seed_everything"]


@contextmanager
def isolate_rng(include_cuda: bool = True) -> Iterator[None]:
    """Leave the global generators, on exit, as they were on entry.

    Args:
        include_cuda: Whether to do so with those of CUDA devices too, where any has been used.
    """
    import torch

    used = include_cuda and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    states = torch.cuda.get_rng_state_all() if used else []
    with isolate():
        try:
            yield
        finally:
            if used:
                torch.cuda.set_rng_state_all(states)


def reset_seed() -> None:
    """Seed the generators again as `seed_everything` last did; nothing where it was never called."""
    if os.environ.get("PL_GLOBAL_SEED"):
        seed_everything(workers=os.environ.get("PL_SEED_WORKERS") == "1", verbose=False)


def pl_worker_init_function(worker_id: int, rank: int | None = None) -> None:
    """Seed a loader's worker by its own seed, for loaders that no trainer iterates: there it is done batch by batch.

    Args:
        worker_id: The worker's number.
        rank: The process's number; None for this one's.
    """
    import torch

    from lt_interface import rank_zero_only

    info: Any = torch.utils.data.get_worker_info()
    seed = info.seed if info is not None else torch.initial_seed() + worker_id
    seed_process((seed + ((rank_zero_only.rank if rank is None else rank) << 32)) % 2**63)
