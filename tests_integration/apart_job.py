"""Program of two ranks of which one alone wants or meets something, case after case, and what came of it on each."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rank_cases import QUIET, At, Net, samples
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lt_core import Trainer
from lt_core.callbacks import EarlyStopping, ModelCheckpoint
from lt_interface import LTError

made: list[Trainer] = []
OWN = {"use_distributed_sampler": False}  # each rank takes all that its loader gives


class Apart(Net):
    """Network that leaves out a batch on rank 1, and logs there what rank 0 does not have."""

    skips = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return None if self.skips and self.global_rank and batch_idx == 1 else super().training_step(batch, batch_idx)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        epoch = float(self.current_epoch)
        self.log("own", -epoch if self.global_rank else epoch)


class Skipping(Apart):
    """The same, that leaves out a batch."""

    skips = True


class Stream(IterableDataset[Any]):
    """Samples of which rank 1 has fewer, and others."""

    def __iter__(self) -> Iterator[Any]:
        start, stop = (20, 32) if rank() else (0, 20)
        return (samples(40)[i] for i in range(start, stop))


def rank() -> int:
    """Return the number of this rank."""
    return int(os.environ.get("RANK", "0"))


def on_one(action: Callable[[Any], Any]) -> Any:
    """Return a callback that does something on rank 1, before its third batch."""
    return At(0, 2, lambda trainer, module: action(trainer) if trainer.global_rank == 1 else None)


def fit(*callbacks: Any, module: Any = None, data: Any = None, **flags: Any) -> Trainer:
    """Train two epochs of five batches, with validation; return the trainer."""
    given = {**QUIET, "strategy": "ddp", "devices": 2, "max_epochs": 2, "callbacks": list(callbacks), **flags}
    trainer = Trainer(**given)
    made.append(trainer)
    loader = DataLoader(samples(40), 4)
    trainer.fit(Apart() if module is None else module, loader if data is None else data, loader)
    return trainer


def saved(folder: Path) -> Trainer:
    """Ask for a checkpoint on rank 1."""
    trainer = fit(on_one(lambda t: t.request_checkpoint(folder / "asked.ckpt")))
    assert (folder / "asked.ckpt").exists()
    return trainer


def monitored(folder: Path) -> Trainer:
    """Stop early, and save the best, by a value that differs by rank."""
    best = ModelCheckpoint(folder, monitor="own", save_top_k=1)
    return fit(EarlyStopping("own", patience=2), best, max_epochs=9, enable_checkpointing=True)


def validated() -> Trainer:
    """Validate five batches on rank 0 and two on rank 1."""
    trainer = Trainer(strategy="ddp", devices=2, **QUIET, **OWN)
    trainer.validate(Apart(), DataLoader(samples(8 if rank() else 20), 4), verbose=False)
    return trainer


def raises(trainer: Any) -> None:
    """Fail."""
    raise ValueError("broken here")


CASES: dict[str, Callable[[Path], Trainer]] = {
    "stop": lambda folder: fit(on_one(lambda trainer: setattr(trainer, "should_stop", True))),
    "None": lambda folder: fit(module=Skipping()),
    "save": saved,
    "monitor": monitored,
    "evaluation": lambda folder: validated(),
    "stream": lambda folder: fit(data=DataLoader(Stream(), 4), **OWN),
    "uneven": lambda folder: fit(data=DataLoader(samples(8 if rank() else 20), 4), **OWN),
    "exception": lambda folder: fit(on_one(raises)),
    "SIGTERM": lambda folder: fit(on_one(lambda trainer: os.kill(os.getpid(), signal.SIGTERM))),
    "SIGINT": lambda folder: fit(on_one(lambda trainer: os.kill(os.getpid(), signal.SIGINT))),
}


def main(folder: Path, names: list[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in names:
        try:
            found[name] = CASES[name](folder).global_step
        except (ValueError, RuntimeError, LTError) as error:
            found[name] = f"{type(error).__name__}: {error}"
        except (SystemExit, KeyboardInterrupt):
            found[name] = made[-1].global_step
            raise
        finally:
            (folder / f"{rank()}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
