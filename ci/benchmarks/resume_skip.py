"""Measure what resuming far into an epoch costs: no skipped sample may be loaded, and an index may cost 1 us."""

from __future__ import annotations

import argparse
import sys
import time
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from lt_core.data import Feed
from lt_interface import World

ALLOWED = 1.0


class Counting(Dataset[Tensor]):
    """Huge data set that counts what is asked of it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.loaded = 0

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        self.loaded += len(indices)
        return [torch.tensor(indices[:4])]


def first(samples: list[Tensor]) -> Tensor:
    return samples[0]


def make_feed(size: int, batch_size: int) -> tuple[Feed, Counting]:
    data = Counting(size)
    torch.manual_seed(0)
    loader = DataLoader(data, batch_size=batch_size, shuffle=True, collate_fn=first)
    return Feed(loader, stage="train", world=World(), seed=0), data


def drawing(size: int) -> float:
    """Return the seconds that the sampler itself takes for an epoch's order: no cost of skipping."""
    begun = time.process_time()
    next(iter(RandomSampler(range(size))))
    return time.process_time() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2_000_000)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--check", action="store_true", help="fail if it is over the figure")
    given = parser.parse_args()
    far = given.samples // given.batch_size - 10

    feed, _ = make_feed(given.samples, given.batch_size)
    batches = iter(feed.epoch(0))
    for _ in islice(batches, far):
        pass
    state = feed.state_dict()
    expected = next(batches)

    feed, data = make_feed(given.samples, given.batch_size)
    feed.load_state_dict(state)
    begun = time.process_time()
    resumed = next(iter(feed.resume(0)))
    seconds = time.process_time() - begun
    if not torch.equal(resumed, expected):
        raise SystemExit(f"the resumed feed went on with {resumed.tolist()}, not with {expected.tolist()}")
    skipped = far * given.batch_size
    cost = (seconds - drawing(given.samples)) / skipped * 1e6
    wrong = data.loaded - given.batch_size
    print(f"skipped {skipped:,} samples in {seconds:.2f} s CPU: {cost:.3f} us an index  allowed {ALLOWED:g}")
    print(f"samples loaded that had been skipped: {wrong}  allowed 0")
    return int(given.check and (cost > ALLOWED or wrong != 0))


if __name__ == "__main__":
    sys.exit(main())
