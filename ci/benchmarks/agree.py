"""Measure what it costs that ranks exchange their flags after each batch, on 2 forked ranks of this machine.

Between the exchanges each rank computes for about a millisecond, and the ranks meet, as a gradient exchange makes them.
The median is the cost of an exchange itself; what lies above it is waiting for a rank that is late.
"""

from __future__ import annotations

import sys
import time
from statistics import median, quantiles

import torch
import torch.distributed as dist

from lt_accel.strategies.ddp import DDPStrategy
from lt_interface import Plan
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.reference import ReferenceAccelerator

ALLOWED = 60.0
STEPS = 1000


def exchanges(rank: int) -> list[float]:
    """Return what each exchange took on this rank, in microseconds."""
    strategy = DDPStrategy()
    strategy.setup(None, ReferenceAccelerator(), (0, 1), Plan(devices=(0, 1)))
    agree, layer, x = strategy.collectives.agree, torch.nn.Linear(256, 256), torch.randn(64, 256)
    took = []
    for _ in range(STEPS):
        for _ in range(20):
            layer(x)
        dist.all_reduce(torch.ones(1000))
        begun = time.perf_counter()
        agree(0)
        took.append((time.perf_counter() - begun) * 1e6)
    return took[STEPS // 10 :]


def main() -> int:
    worst = 0.0
    for rank, took in enumerate(run_ranks(exchanges, 2)):
        worst = max(worst, median(took))
        print(f"rank {rank}: median {median(took):.1f} us, 9 of 10 below {quantiles(took, n=10)[-1]:.1f} us", end="; ")
        print(f"allowed {ALLOWED:.0f} us")
    return int(worst > ALLOWED and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
