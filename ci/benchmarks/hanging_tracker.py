"""Measure what a tracker that hangs costs a run: its whole time against one without logger, and each logging call.

Runs come in pairs, in turns, so that a machine that is busy for a while is busy for both.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import time
import warnings
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from lt_core import LightningModule, Trainer
from lt_core.state.run import Run
from lt_interface import Logger

ALLOWED_RATIO, ALLOWED_P99 = 1.02, 0.2


class Hanging(Logger):
    """Logger whose server takes the connection and never answers."""

    def __init__(self, port: int) -> None:
        self.port = port

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\n\r\n")
            connection.recv(1)


class Net(LightningModule):
    """Small network that logs ten values a step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.layers(x), y)
        for i in range(10):
            self.log(f"value_{i}", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def run(logger: Any, steps: int, calls: list[float] | None = None) -> float:
    """Return the seconds of a whole fit; note the seconds of each logging call."""
    batches = [(torch.randn(256, 256), torch.randn(256, 1))] * steps
    off = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet: dict[str, Any] = dict.fromkeys(off, False)
    torch.manual_seed(0)
    net, log = Net(), Run.log

    def timed(self: Run, *args: Any, **kwargs: Any) -> None:
        begun = time.perf_counter()
        log(self, *args, **kwargs)
        if calls is not None:
            calls.append(time.perf_counter() - begun)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Run.log = timed  # type: ignore[method-assign]
        try:
            trainer = Trainer(
                max_epochs=1, accelerator="cpu", logger=logger, log_every_n_steps=1, default_root_dir=folder, **quiet
            )
            begun = time.perf_counter()
            trainer.fit(net, batches)
            return time.perf_counter() - begun
        finally:
            Run.log = log  # type: ignore[method-assign]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="fail if it is over the figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ratios: list[float] = []
    calls: list[float] = []
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        port = server.getsockname()[1]
        run(False, 200)
        for number in range(given.pairs):
            if number % 2:
                alone = run(False, given.steps)
                hanging = run(Hanging(port), given.steps, calls)
            else:
                hanging = run(Hanging(port), given.steps, calls)
                alone = run(False, given.steps)
            ratios.append(hanging / alone)
            print(f"pair {number}: {hanging:.2f} s with a hanging tracker, {alone:.2f} s with none, {ratios[-1]:.3f}")
    p99 = sorted(calls)[int(len(calls) * 0.99)] * 1000
    print(f"run time over none, median of {given.pairs} pairs   {median(ratios):.3f}   allowed {ALLOWED_RATIO}")
    print(f"a logging call, p99 of {len(calls)}        {p99:.3f} ms   allowed {ALLOWED_P99} ms")
    print(f"a logging call, median                {median(calls) * 1000:.3f} ms")
    return int(given.check and (median(ratios) > ALLOWED_RATIO or p99 > ALLOWED_P99))


if __name__ == "__main__":
    sys.exit(main())
