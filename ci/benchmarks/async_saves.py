"""Measure how long an asynchronous save stops training, beside a save that is written at once."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from lt_core.checkpoint import AsyncCheckpointIO, SafetensorsIO

ALLOWED = 0.10  # with a device; the copy of memory that a CPU's save waits for is no less beside a fast disk


def make_tree(megabytes: int, device: str) -> dict[str, Any]:
    """Return the weights and the two moments of Adam for a stack of layers, of so many megabytes in all."""
    width, blocks = 1024, max(1, round(megabytes / 3 / 4.2))
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(blocks))).to(device)
    weights = model.state_dict()
    moments = {n: {"exp_avg": torch.rand_like(w), "exp_avg_sq": torch.rand_like(w)} for n, w in weights.items()}
    return {"state_dict": weights, "optimizer_states": [{"state": moments}]}


def change(tree: dict[str, Any]) -> None:
    """Do what a step would do: change every weight in place."""
    for weight in tree["state_dict"].values():
        weight.add_(1.0)


def settle(device: str) -> None:
    """Wait for the device, so that no other work is measured."""
    if device != "cpu":
        torch.accelerator.synchronize()


def seconds(save: Any, tree: dict[str, Any], path: Path, device: str) -> float:
    """Return how long a save stops training: on a device, how much longer the step behind it takes to be done."""
    settle(device)
    begun = time.perf_counter()
    save(tree, path)
    alone = time.perf_counter() - begun
    change(tree)
    if device == "cpu":
        return alone
    settle(device)
    both = time.perf_counter() - begun
    begun = time.perf_counter()
    change(tree)
    settle(device)
    return max(both - (time.perf_counter() - begun), 0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--check", action="store_true", help="fail if it is over the figure of a device")
    given = parser.parse_args()
    tree = make_tree(given.megabytes, given.device)
    direct, behind = SafetensorsIO(), AsyncCheckpointIO()
    kept: Tensor = tree["state_dict"]["0.weight"]
    stalls, saves = [], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(given.pairs + 1):
            saves.append(seconds(direct.save, tree, Path(folder, "direct.ckpt"), given.device))
            before = kept.cpu().clone()
            stalls.append(seconds(behind.save, tree, Path(folder, "behind.ckpt"), given.device))
            behind.wait()
            written = behind.load(Path(folder, "behind.ckpt"))["state_dict"]["0.weight"]
            if not torch.equal(written, before):
                raise SystemExit(f"turn {turn}: the file holds weights of a later step")
    ratio = median(stalls[1:]) / median(saves[1:])
    print(f"{given.megabytes} MB on {given.device}, {given.pairs} pairs:")
    print(f"a save that is written at once: {median(saves[1:]):.3f} s")
    print(f"an asynchronous one stops training for {median(stalls[1:]):.4f} s (the first, {stalls[0]:.4f} s)")
    print(f"ratio: {ratio:.3f}" + (f"  allowed {ALLOWED:g}" if given.device != "cpu" else ""))
    return int(given.check and given.device != "cpu" and ratio > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
