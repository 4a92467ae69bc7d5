"""Measure what 2 ranks on this machine cost over what one writes by hand: a step, and starting.

A step: inside each rank the loop of a trainer and a hand-written one with ``DistributedDataParallel`` run by turns, on
the same process group, both from a meeting of the ranks on. Starting: whole scripts by turns, one that spawns ranks
which make a group and a ``DistributedDataParallel`` and train a step, and one that does so with a trainer.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from overhead import figures, in_own_process
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

WIDTH, BATCH, SEGMENT = 512, 32, 20
ALLOWED_STEP, ALLOWED_START = 1.05, 1.6
TRAINERS = ("lt_core", "pytorch_lightning")
LOSS = nn.functional.mse_loss

BY_HAND = """
import os, torch, torch.distributed as dist
import torch.multiprocessing as mp

def rank(i):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:PORT", rank=i, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.ones(4, 8)).mean().backward()
    optimizer.step()
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(rank, nprocs=2)
"""
TRAINED = """
import torch
from TRAINER import LightningModule, Trainer

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)
    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

if __name__ == "__main__":
    torch.set_num_threads(1)
    flags = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = Trainer(max_steps=1, accelerator="cpu", devices=2, strategy="ddp_spawn", **flags)
    trainer.fit(Net(), torch.utils.data.DataLoader(torch.ones(8, 8), batch_size=4))
"""


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))


class ByTurns:
    """Hand out segments of batches to a rank's trainer, and time a hand-written segment after each.

    Args:
        pairs: How many segments.
    """

    def __init__(self, pairs: int) -> None:
        self.pairs = pairs
        self.batch = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
        self.trained: list[float] = []
        self.hand: list[float] = []

    def __len__(self) -> int:
        return self.pairs * SEGMENT

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        network = DistributedDataParallel(make_network())
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        x, y = self.batch
        for _ in range(self.pairs):
            dist.barrier()
            begun = time.perf_counter()
            for _ in range(SEGMENT):
                yield self.batch
            middle = time.perf_counter()
            dist.barrier()
            self.trained.append(middle - begun)
            begun = time.perf_counter()
            for _ in range(SEGMENT):
                loss = LOSS(network(x), y)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            self.hand.append(time.perf_counter() - begun)


def run_steps(trainer: str, pairs: int) -> dict[str, float]:
    """Return the figures of a trainer's step, measured on rank 0.

    Args:
        trainer: Name of the package.
        pairs: How many segments.
    """
    library: Any = importlib.import_module(trainer)
    sent = Path(tempfile.mkstemp(suffix=".json")[1])

    class Net(library.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = make_network()
            self.turns = ByTurns(pairs)

        def train_dataloader(self) -> ByTurns:
            return self.turns

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return LOSS(self.network(batch[0]), batch[1])

        def on_train_end(self) -> None:
            if self.global_rank == 0:
                ratios = [a / b for a, b in zip(self.turns.trained, self.turns.hand, strict=True)]
                extra = [(a - b) / SEGMENT * 1e6 for a, b in zip(self.turns.trained, self.turns.hand, strict=True)]
                found = {**figures(ratios, self.turns.hand, SEGMENT), "extra_us": median(extra[3:])}
                sent.write_text(json.dumps(found), encoding="utf-8")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    flags = {"accelerator": "cpu", "devices": 2, "strategy": "ddp_fork", "logger": False, **quiet}
    library.Trainer(max_epochs=1, use_distributed_sampler=False, **flags).fit(Net())
    found: dict[str, float] = json.loads(sent.read_text(encoding="utf-8"))
    sent.unlink()
    return found


def run_starts(trainer: str, tries: int) -> tuple[float, float]:
    """Return the median ratio of a trainer's script over the hand-written one, and the seconds of that.

    Args:
        trainer: Name of the package.
        tries: How many pairs.
    """
    ratios, hand = [], []
    with tempfile.TemporaryDirectory() as folder:
        trained = Path(folder, "trained.py")
        trained.write_text(TRAINED.replace("TRAINER", trainer), encoding="utf-8")
        for i in range(tries):
            by_hand = Path(folder, "by_hand.py")
            by_hand.write_text(BY_HAND.replace("PORT", str(20000 + (time.time_ns() // 1000 + i) % 20000)))
            seconds = [_seconds(script) for script in (by_hand, trained)]
            hand.append(seconds[0])
            ratios.append(seconds[1] / seconds[0])
    return median(ratios), median(hand)


def _seconds(script: Path) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, script], check=True, cwd=script.parent, capture_output=True)
    return time.perf_counter() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=120, help=f"pairs of {SEGMENT} steps for each trainer")
    parser.add_argument("--starts", type=int, default=5, help="pairs of scripts for each trainer")
    parser.add_argument("--check", action="store_true", help="fail if ours is over its figure")
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        print(json.dumps(run_steps(given.one, given.pairs)))
        return 0
    over = False
    for name in TRAINERS:
        if importlib.util.find_spec(name) is None:
            continue
        ours, found = name == "lt_core", in_own_process(__file__, "--one", name, "--pairs", str(given.pairs))
        if isinstance(found, str):
            print(f"{name}: {found}")
            over = over or ours
        else:
            print(
                f"{name:<20} a step of width {WIDTH} on 2 ranks {found['ratio']:.3f}x of a hand-written one, quartiles "
                f"{found['low']:.3f}-{found['high']:.3f}, {found['extra_us']:+.0f} us on {found['hand_us']:.0f} us"
                f"{f'  allowed {ALLOWED_STEP}' if ours else ''}",
                flush=True,
            )
            over = over or (ours and found["ratio"] > ALLOWED_STEP)
        if given.starts:
            ratio, seconds = run_starts(name, given.starts)
            print(
                f"{name:<20} spawned ranks and one step {ratio:.2f}x of a hand-written script's {seconds:.1f} s"
                f"{f'  allowed {ALLOWED_START}' if ours else ''}",
                flush=True,
            )
            over = over or (ours and ratio > ALLOWED_START)
    return int(over and given.check)


if __name__ == "__main__":
    __file__ = str(Path(__file__).resolve())
    sys.exit(main())
