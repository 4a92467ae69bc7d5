"""Resume inside an epoch with another number of real ranks, or another batch size: each sample once, in one order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import Callback, LightningModule, Trainer
from lt_core.data import CombinedLoader
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.reference import ReferenceLauncher

SECONDS = 400.0
N, BATCH, SAVED = 53, 4, 3  # samples, of a rank's batch before the resume, and after how many batches it was saved


class Net(LightningModule):
    """Regression that notes which samples it trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        batch = batch["a"] if isinstance(batch, dict) else batch
        self.seen.append((self.current_epoch, batch.tolist()))
        return self.layer(batch.float().reshape(-1, 1) / N).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Saving(Callback):
    """A checkpoint in the second epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (1, SAVED - 1):
            trainer.save_checkpoint(self.path)


class Stream(IterableDataset[int]):
    """Numbers in their order, the same on each rank."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(48))


class Kept(Stream):
    """The same, whose place is kept."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.at, 48):
            self.at = number + 1
            yield number
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def mapped(size: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(list(range(N)), size, **options)  # type: ignore[arg-type]


KINDS: dict[str, Callable[[int], Any]] = {
    "in order": lambda size: mapped(size),
    "shuffled": lambda size: mapped(size, shuffle=True),
    "sampler": lambda size: mapped(size, sampler=WeightedRandomSampler(torch.ones(N), N, replacement=False)),
    "side by side": lambda size: {"a": mapped(size, shuffle=True), "b": mapped(size, shuffle=True)},
    "stream": lambda size: DataLoader(Stream(), size),
    "kept": lambda size: DataLoader(Kept(), size),
    "workers": lambda size: mapped(size, shuffle=True, num_workers=2),
    "stream workers": lambda size: DataLoader(Stream(), size, num_workers=1),
}


def fit(size: int, root: Path, kind: str, batch: int, resumes: Path | None = None) -> Net:
    net = Net()
    torch.manual_seed(3)
    trainer = Trainer(
        accelerator="cpu", devices=size, strategy=DDPStrategy() if size > 1 else "auto", launcher=ReferenceLauncher(),
        max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=root, callbacks=[] if resumes else [Saving(root / f"{kind}-{size}.ckpt")],
    )  # fmt: skip
    trainer.fit(net, KINDS[kind](batch), ckpt_path=resumes)
    return net


def orders(ranks: list[Net | list[Any]]) -> dict[int, list[int]]:
    """Return the samples of each epoch in their order over the ranks; what only repeats one of its step is left out."""
    found: dict[int, list[int]] = {}
    for step in zip(*ranks, strict=True):
        together: list[int] = []
        for _, samples in step:
            together += [i for i in samples if i not in together]
        found.setdefault(step[0][0], []).extend(together)
    return found


def on(size: int, job: Callable[[int], Any]) -> list[Any]:
    def quiet(rank: int) -> Any:
        warnings.simplefilter("ignore")
        return job(rank)

    Net().configure_optimizers()
    return run_ranks(quiet, size, SECONDS)
