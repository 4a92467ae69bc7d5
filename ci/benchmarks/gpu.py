"""Measure a step on a card over a hand-written loop's, ours beside PyTorch Lightning where it is installed.

Both loops run by turns inside one process, as in overhead.py: the iterator from which a trainer takes its batches
hands out a segment, then runs a hand-written one on its own copy of the network. Times are of the wall, each segment
ending with the device idle. The figure is the median of the segments' ratios.

The copy to the device is measured in the same way: a segment of batches in pinned memory by turns with one of batches
that lie on the device already.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import importlib.util
import json
import logging
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from overhead import figures, in_own_process
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
LIBRARIES = {"ours": "lt_core", "Lightning": "pytorch_lightning"}


@dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        network: Makes the network.
        shape: Shape of one batch of inputs.
        classes: Number of classes to tell apart.
        segment: Steps of a segment.
        times: How many times as many pairs of segments as usual, where a step is short and its time unsteady.
        precision: Number format, in Lightning's words.
        clip: Norm to which gradients are cut, or None.
        logs: Values logged each step.
    """

    network: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int
    segment: int
    times: int = 1
    precision: str = "32-true"
    clip: float | None = None
    logs: int = 0

    def batches(self) -> list[Batch]:
        """Make a segment's batches in pinned memory, where there is a card."""
        torch.manual_seed(1)
        made = [(torch.randn(self.shape), torch.randint(self.classes, self.shape[:1])) for _ in range(8)]
        pinned = [(x.pin_memory(), y.pin_memory()) if torch.cuda.is_available() else (x, y) for x, y in made]
        return [pinned[i % len(pinned)] for i in range(self.segment)]

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def context(self, device: str) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "bf16-mixed":
            return torch.autocast(device, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def make_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


class Residual(nn.Module):
    """Two convolutions around which the input passes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.layers(x)
        return result


def make_resnet() -> nn.Module:
    stem = nn.Conv2d(3, 64, 3, padding=1)
    blocks = [Residual(64) for _ in range(8)]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def make_patches() -> nn.Module:
    stem = nn.Conv2d(3, 64, 8, stride=8)
    blocks = [Residual(64) for _ in range(4)]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Transformer(nn.Module):
    """Encoder of four layers over a sequence of vectors."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4)
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.encoder(x).mean(1))
        return result


MLP = "MLP 64-256-256-10, batch 64, float32"
JOBS = {
    MLP: Job(make_mlp, (64, 64), 10, 25, 6),
    "the same with 5 logs a step": Job(make_mlp, (64, 64), 10, 25, 6, logs=5),
    "ResNet-like, 17 convolutions of 64 channels, 256 x 32 x 32, bf16-mixed": Job(
        make_resnet, (256, 3, 32, 32), 10, 8, precision="bf16-mixed"
    ),
    "transformer, 4 layers of 512, 32 x 256, bf16-mixed, clipped": Job(
        Transformer, (32, 256, 512), 10, 8, 2, "bf16-mixed", clip=1.0
    ),
}
# Large pictures, 77 MB a batch: some milliseconds on the bus, and a step that takes not much longer.
COPIED = Job(make_patches, (128, 3, 224, 224), 10, 8, precision="bf16-mixed")


def wait(device: str) -> float:
    """Return the time at which the device has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class ByTurns:
    """Batches of a segment, then a hand-written segment, and the time of both."""

    def __init__(self, job: Job, network: nn.Module, segments: int, device: str) -> None:
        self.job, self.segments, self.device = job, segments, device
        self.batches = job.batches()
        self.network = copy.deepcopy(network).to(device)
        self.optimizer = job.optimizer(self.network)
        self.ratios: list[float] = []
        self.hand: list[float] = []

    def __len__(self) -> int:
        return self.segments * self.job.segment

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.segments):
            begun = wait(self.device)
            yield from self.batches
            middle = wait(self.device)
            self.run()
            ended = wait(self.device)
            self.hand.append(ended - middle)
            self.ratios.append(2 * (middle - begun) / sum(self.hand[-2:]) if len(self.hand) > 1 else 1.0)

    def run(self) -> None:
        """Train a segment by hand."""
        by_hand(self.job, self.network, self.optimizer, self.batches, self.device)


def by_hand(
    job: Job, network: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Batch], device: str
) -> None:
    """Train as one writes it without any trainer."""
    for batch in batches:
        x, y = (t.to(device, non_blocking=True) for t in batch)
        with job.context(device):
            loss = nn.functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if job.clip:
            nn.utils.clip_grad_norm_(network.parameters(), job.clip)
        optimizer.step()


class HereAndThere(ByTurns):
    """Segments in pinned memory by turns with segments that lie on the device."""

    def __iter__(self) -> Iterator[Batch]:
        there = [(x.to(self.device), y.to(self.device)) for x, y in self.batches]
        for _ in range(self.segments):
            begun = wait(self.device)
            yield from self.batches
            middle = wait(self.device)
            yield from there
            ended = wait(self.device)
            self.hand.append(ended - middle)
            self.ratios.append((middle - begun) / (ended - middle))


def train_by_hand(job: Job, segments: int, device: str) -> ByTurns:
    """Run the hand-written loop against itself: how far from 1 the method is."""
    torch.manual_seed(0)
    network = job.network().to(device)
    turns = ByTurns(job, network, segments, device)
    by_hand(job, network, job.optimizer(network), turns, device)
    return turns


def train(library: Any, job: Job, turns: type[ByTurns], segments: int, device: str) -> ByTurns:
    """Run a trainer with the familiar names: ours or PyTorch Lightning's."""

    class Net(library.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.network = job.network()

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            x, y = batch
            loss = nn.functional.cross_entropy(self.network(x), y)
            for i in range(job.logs):
                self.log(f"value_{i}", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return job.optimizer(self)

    net = Net()
    data = turns(job, net.network, segments, device)
    with tempfile.TemporaryDirectory() as folder:
        library.Trainer(
            max_epochs=1,
            accelerator=device,
            devices=1,
            precision=job.precision,
            gradient_clip_val=job.clip,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=bool(job.logs) and importlib.import_module(f"{library.__name__}.loggers").CSVLogger(folder),
            default_root_dir=folder,
        ).fit(net, data)
    return data


def run_one(name: str, library: str, segments: int, device: str) -> None:
    """Run one job in this process and print its figures as JSON."""
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    job, turns = (JOBS[name], ByTurns) if name in JOBS else (COPIED, HereAndThere)
    segments *= job.times
    if library == "hand":
        data = train_by_hand(job, segments, device)
    else:
        data = train(importlib.import_module(LIBRARIES[library]), job, turns, segments, device)
    print(json.dumps(figures(data.ratios, data.hand, job.segment)))


def measured(name: str, library: str, given: argparse.Namespace) -> str:
    """Return a cell of the table: the figure of one job in a process of its own, or why there is none."""
    options = ["--library", library, "--segments", str(given.segments), "--device", given.device]
    found = in_own_process(__file__, "--one", name, *options)
    if isinstance(found, str):
        return found
    return f"{found['ratio']:.3f} ({found['low']:.3f}-{found['high']:.3f}; {found['hand_us']:.0f} us)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=20, help="pairs of segments for each trainer")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try this script")
    parser.add_argument("--only", default="", help="jobs whose name contains this")
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--library", default="ours", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        run_one(given.one, given.library, given.segments, given.device)
        return 0
    there = [name for name, module in LIBRARIES.items() if importlib.util.find_spec(module)]
    card = torch.cuda.get_device_name() if given.device == "cuda" else platform.machine()
    versions = ", ".join(f"{m} {importlib.import_module(m).__version__}" for m in (LIBRARIES[n] for n in there))
    print(f"\n{date.today()}, {card}, Python {platform.python_version()}, torch {torch.__version__}, {versions}.\n")
    print("A step's wall time over the hand-written loop's: median (quartiles; the hand-written step).\n")
    print("| job |", " | ".join(there), "|")
    print("| --- |", " | ".join("---" for _ in there), "|")
    failed = False
    if given.only in MLP:
        print(
            f"| {MLP}, the hand-written loop again |",
            measured(MLP, "hand", given),
            "|",
            "|" * (len(there) - 1),
            flush=True,
        )
    for name in [*JOBS, "copy to the device: pinned batches of 77 MB over batches that lie there"]:
        if given.only not in name:
            continue
        cells = [measured(name, library, given) for library in there]
        failed = failed or cells[0].startswith("failed")
        print(f"| {name} |", " | ".join(cells), "|", flush=True)
    return int(failed)


if __name__ == "__main__":
    __file__ = str(Path(__file__).resolve())
    sys.exit(main())
