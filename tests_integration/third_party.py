"""One plugin of each kind, as a package of somebody else's would hold them; nothing of ours knows their names."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils._pytree import tree_map

from lt_core import Callback, LightningModule, Trainer
from lt_core.callbacks import ProgressBar
from lt_core.profilers import PassThroughProfiler
from lt_interface import Logger, PlainPrecision, Plan, World
from lt_interface.registry import accelerators, checkpoint_ios, strategies


class PaperLogger(Logger):
    """Logger that writes one JSON line a call, each run to a folder of its own."""

    def __init__(self, save_dir: str) -> None:
        self._save_dir = Path(save_dir)

    @cached_property
    def _root(self) -> Path:
        return next(path for n in count() if not (path := self._save_dir / f"paper_{n}").exists())

    @property
    def name(self) -> str:
        return "paper"

    @property
    def version(self) -> str:
        return self._root.name

    @property
    def directory(self) -> str:
        return str(self._root)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        with self.exclusive(), open(self._root / "lines", "a", encoding="utf-8") as file:
            file.write(json.dumps([step, metrics]) + "\n")


class RoundedPrecision(PlainPrecision):
    """Precision that rounds every input to two decimals."""

    name = "32-rounded"
    converts_batch = True

    def convert_batch(self, batch: Any) -> Any:
        return tree_map(lambda x: (x * 100).round() / 100 if torch.is_tensor(x) and x.is_floating_point() else x, batch)


class LoudStrategy(strategies.get("single_device")):  # type: ignore[misc]
    """Strategy of one device that counts its engines and its ends."""

    name = "loud"
    calls: ClassVar[list[str]] = []

    def setup(self, cluster: Any, accelerator: Any, devices: Sequence[int], plan: Plan) -> World:
        self.calls.append(f"setup {plan.stage} on {accelerator.name}")
        world: World = super().setup(cluster, accelerator, devices, plan)
        return world

    def engine(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append("engine")
        return super().engine(*args, **kwargs)

    def leave(self, error: BaseException | None = None) -> None:
        self.calls.append("leave")
        super().leave(error)


class OtherAccelerator(accelerators.get("cpu")):  # type: ignore[misc]
    """Accelerator of a device that is the CPU by another name, and never chosen by itself."""

    name = "other"
    priority = -1
    used: ClassVar[list[torch.device]] = []

    def setup(self, device: torch.device) -> None:
        self.used.append(device)


class CountingIO(checkpoint_ios.get("safetensors")):  # type: ignore[misc]
    """Checkpoint store that notes what it wrote and read."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []

    def save(self, tree: dict[str, Any], path: str) -> None:
        self.calls.append(("save", path))
        super().save(tree, path)

    def load(self, path: str) -> dict[str, Any]:
        self.calls.append(("load", path))
        tree: dict[str, Any] = super().load(path)
        return tree


class DotsBar(ProgressBar):
    """Progress bar that draws one dot a batch."""

    def __init__(self) -> None:
        self.dots = ""

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self.dots += "."


class SavesAtLoss(Callback):
    """Trigger that saves as soon as the loss is below a bound."""

    def __init__(self, bound: float, path: Path) -> None:
        self.bound, self.path = bound, path

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *rest: Any) -> None:
        if outputs["loss"] < self.bound and not self.path.exists():
            trainer.save_checkpoint(self.path)


class CountsBatches(Callback):
    """Callback that counts the batches of all its runs, over a resume too."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.batches += 1

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]


class SecondsProfiler(PassThroughProfiler):
    """Profiler that adds up the seconds of each action."""

    passes_through = False

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        began = time.perf_counter()
        try:
            yield action_name
        finally:
            self.seconds[action_name] += time.perf_counter() - began
