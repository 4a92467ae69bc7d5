"""Random numbers."""

from __future__ import annotations

import os
from typing import Any

from lt_core.state.rng import isolate as isolate_rng
from lt_core.state.rng import seed_everything, seed_process

__all__ = ["isolate_rng", "pl_worker_init_function", "reset_seed", "seed_everything"]


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
