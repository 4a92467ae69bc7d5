"""Measure how long a batch of two small tensors takes to reach a device, behind a training step.

A step in between matters: it fills the processor's caches with other code, after which each Python frame costs several
times of what it costs in a loop of its own. Without a card the tensors go nowhere, and what is left is the host's work.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import nn

from lt_accel.accelerators.streams import CopyStream
from lt_core.data.stager import Stager


def measure(ways: dict[str, Callable[[Any], Any]], device: torch.device, steps: int) -> dict[str, float]:
    """Return the median of each way's seconds, the ways taken in a new order behind each step."""
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)).to(
        device
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    x, y = torch.randn(64, 64), torch.randint(10, (64,))
    inputs, targets = x.to(device), y.to(device)
    batch = (x.pin_memory(), y.pin_memory()) if device.type == "cuda" else (x, y)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(steps):
        for name in random.sample(list(ways), len(ways)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            begun = perf_counter()
            ways[name](batch)
            taken[name].append(perf_counter() - begun)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    ways: dict[str, Callable[[Any], Any]] = {
        "by hand": lambda batch: [tensor.to(device, non_blocking=True) for tensor in batch],
        "through the trainer": Stager(CopyStream(device), device),
        "nothing": lambda batch: batch,
    }
    for name, seconds in measure(ways, device, arguments.steps).items():
        print(f"{name:20} {seconds * 1e6:6.1f} us")


if __name__ == "__main__":
    main()
