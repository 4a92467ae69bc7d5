"""Random numbers, under the path that users' imports name."""

from lt_core.state.rng import isolate as isolate_rng
from lt_core.state.rng import seed_everything

__all__ = ["isolate_rng", "seed_everything"]
