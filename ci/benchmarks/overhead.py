"""Measure what a step costs over a hand-written loop, ours beside other trainers that are installed.

Whole-process times vary by a third on a shared machine. So both loops run by turns inside one process: the iterator
from which a trainer takes its batches hands out a segment of 100, then runs a segment of 100 hand-written steps on its
own copy of the network, and takes the CPU time of both. The figure is the median of the segments' ratios.

The job: an MLP of 32-64-1, batches of 32 ready in a list, mean squared error, SGD, one thread.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
SEGMENT = 100
ALLOWED = {"lt_core": 1.05, "lt_core, 5 logs and 6 callbacks": 1.12, "lt_core, simple profiler": 1.15}
LOGS, CALLBACKS = 5, 6


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))


def make_batches() -> list[Batch]:
    torch.manual_seed(1)
    return [(torch.randn(32, 32), torch.randn(32, 1)) for _ in range(SEGMENT)]


def by_hand(network: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Batch]) -> None:
    """Train a segment as one writes it without any trainer."""
    for x, y in batches:
        loss = nn.functional.mse_loss(network(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


class ByTurns:
    """Hand out segments of batches, and time a hand-written segment after each."""

    def __init__(self, network: nn.Module, segments: int) -> None:
        self.segments = segments
        self.batches = make_batches()
        self.network = copy.deepcopy(network)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01)
        self.ratios: list[float] = []
        self.hand: list[float] = []

    def __len__(self) -> int:
        return self.segments * SEGMENT

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.segments):
            begun = time.process_time()
            yield from self.batches
            # Here the trainer asks for the next batch: its hundredth step is done.
            middle = time.process_time()
            by_hand(self.network, self.optimizer, self.batches)
            ended = time.process_time()
            self.hand.append(ended - middle)
            # Against the hand-written segments on both sides of it: a machine that slows down slows both.
            self.ratios.append(2 * (middle - begun) / sum(self.hand[-2:]) if len(self.hand) > 1 else 1.0)


def with_hand(segments: int) -> ByTurns:
    """Run the hand-written loop against itself: how far from 1 the method is."""
    network = make_network()
    turns = ByTurns(network, segments)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for x, y in turns:
        loss = nn.functional.mse_loss(network(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return turns


def lightning_like(library: Any, segments: int, busy: bool, **flags: Any) -> ByTurns:
    """Run a trainer with the familiar names: ours or PyTorch Lightning's."""

    class Net(library.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = make_network()

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            x, y = batch
            loss = nn.functional.mse_loss(self.network(x), y)
            if busy:
                for i in range(LOGS):
                    self.log(f"value_{i}", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    class Watching(library.Callback):  # type: ignore[misc]
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            return None

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            return None

    net = Net()
    turns = ByTurns(net.network, segments)
    with tempfile.TemporaryDirectory() as folder:
        trainer = library.Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=busy and library.loggers.CSVLogger(folder),
            callbacks=[Watching() for _ in range(CALLBACKS)] if busy else [],
            default_root_dir=folder,
            **flags,
        )
        trainer.fit(net, turns)
    return turns


def with_ours(segments: int, busy: bool = False, **flags: Any) -> ByTurns:
    import lt_core
    import lt_core.loggers

    return lightning_like(lt_core, segments, busy, **flags)


def with_lightning(segments: int, busy: bool = False) -> ByTurns:
    import pytorch_lightning
    import pytorch_lightning.loggers

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    return lightning_like(pytorch_lightning, segments, busy)


def with_ignite(segments: int) -> ByTurns:
    from ignite.engine import create_supervised_trainer

    network = make_network()
    turns = ByTurns(network, segments)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    create_supervised_trainer(network, optimizer, nn.functional.mse_loss).run(turns, max_epochs=1)
    return turns


def with_accelerate(segments: int) -> ByTurns:
    from accelerate import Accelerator

    network = make_network()
    turns = ByTurns(network, segments)
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), lr=0.01))
    for x, y in turns:
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
    return turns


WAYS: dict[str, tuple[str, Callable[[int], ByTurns]]] = {
    "hand-written": ("torch", with_hand),
    "lt_core": ("lt_core", with_ours),
    "lt_core, 5 logs and 6 callbacks": ("lt_core", lambda n: with_ours(n, busy=True)),
    "lt_core, simple profiler": ("lt_core", lambda n: with_ours(n, profiler="simple")),
    "ignite": ("ignite", with_ignite),
    "accelerate": ("accelerate", with_accelerate),
    "pytorch_lightning": ("pytorch_lightning", with_lightning),
    "pytorch_lightning, 5 logs and 6 callbacks": ("pytorch_lightning", lambda n: with_lightning(n, busy=True)),
}


def run_one(name: str, segments: int) -> None:
    """Run one way in this process and print its figures as JSON."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    turns = WAYS[name][1](segments)
    print(json.dumps(figures(turns.ratios, turns.hand, SEGMENT)))


def figures(ratios: list[float], hand: list[float], steps: int) -> dict[str, float]:
    """Return median and quartiles of segments' ratios, and the hand-written step in microseconds.

    Args:
        ratios: A ratio a segment; the first segments, which warm up caches and allocators, are left out.
        hand: Seconds of each hand-written segment.
        steps: Steps of a segment.
    """
    settled = slice(min(3, len(ratios) - 1), None)
    ratios = sorted(ratios[settled])
    spread = {"low": ratios[len(ratios) // 4], "high": ratios[3 * len(ratios) // 4]}
    return {"ratio": median(ratios), **spread, "hand_us": median(hand[settled]) / steps * 1e6}


def in_own_process(script: str, *arguments: str) -> dict[str, float] | str:
    """Return the figures that a benchmark prints in a process of its own, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, script, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1:]}"
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=200, help="pairs of 100 steps for each trainer")
    parser.add_argument("--only", default="", help="those whose name contains this")
    parser.add_argument("--check", action="store_true", help="fail if ours is over its figure")
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        run_one(given.one, given.segments)
        return 0
    over = False
    print(f"CPU time of a step over a hand-written loop's, {given.segments} pairs of {SEGMENT} steps by turns:")
    for name, (module, _) in WAYS.items():
        if given.only not in name or importlib.util.find_spec(module) is None:
            continue
        found = in_own_process(__file__, "--one", name, "--segments", str(given.segments))
        if isinstance(found, str):
            print(f"{name:<42} {found}")
            over = over or name in ALLOWED
            continue
        allowed = ALLOWED.get(name)
        note = f"  allowed {allowed}" if allowed else ""
        print(
            f"{name:<42} {found['ratio']:6.3f}x  quartiles {found['low']:.3f}-{found['high']:.3f}"
            f"  hand {found['hand_us']:.0f} us{note}",
            flush=True,
        )
        over = over or (allowed is not None and found["ratio"] > allowed)
    return int(over and given.check)


if __name__ == "__main__":
    __file__ = str(Path(__file__).resolve())
    sys.exit(main())
