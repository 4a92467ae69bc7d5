"""Check how many Python calls of ours a training step costs, and how deep under our frames the user's step lies.

Counted are 'call' events of sys.setprofile whose code lies in a lt_* package; the resumption of a generator is one.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

from lt_core import Callback, LightningModule, Trainer

CALLS, CALLS_A_LOG, CALLS_A_HOOK = 3, 2, 0
FRAMES, FRAMES_CLOSURE = 6, 9
FIRST, LAST = 20, 120
PACKAGES = {"lt_interface", "lt_core", "lt_loggers", "lt_accel"}


def is_ours(code: CodeType, known: dict[str, bool] = {}) -> bool:  # noqa: B006 - a cache, on purpose
    """Return whether code lies in one of the packages."""
    path = code.co_filename
    if path not in known:
        known[path] = not PACKAGES.isdisjoint(Path(path).parts)
    return known[path]


class Counting:
    """Count of our calls from one training step to the next."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.names: Counter[str] = Counter()
        self.frames = 0
        self.chain: list[str] = []
        self._count = 0

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and is_ours(frame.f_code):
            self._count += 1
            self.names[f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"] += 1

    def mark(self, step: int) -> None:
        """Close a step's count; called by the module at the start of each training step."""
        if step == FIRST:
            self.look_up()
            self.names.clear()
            sys.setprofile(self.profile)
        elif FIRST < step <= LAST:
            self.steps.append(self._count)
        if step == LAST:
            sys.setprofile(None)
        self._count = 0

    def look_up(self) -> None:
        """Count the frames of ours above the user's step."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            if is_ours(frame.f_code):
                self.frames += 1
                self.chain.append(f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}")
            frame = frame.f_back


class Net(LightningModule):
    """Tiny network that counts."""

    logs = 0
    ways: dict[str, Any] = {}

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))
        self.counting = Counting()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.counting.mark(batch_idx)
        x, y = batch
        loss = nn.functional.mse_loss(self.layers(x), y)
        for i in range(self.logs):
            self.log(f"value_{i}", loss, **self.ways)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Logging(Net):
    logs = 5


class Averaging(Logging):
    ways = {"on_step": True, "on_epoch": True, "prog_bar": True}


class Hooked(Net):
    """Network that overrides the hooks that every step passes."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        return None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        return None

    def on_before_backward(self, loss: Tensor) -> None:
        return None

    def on_after_backward(self) -> None:
        return None

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        return None

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        return None


class Watching(Callback):
    """Callback that every step passes."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        return None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        return None


class Closure(Net):
    """Network that asks for the form in which the optimizer calls the step."""

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        optimizer.step(closure=optimizer_closure)


def measure(net: Net, **flags: Any) -> Counting:
    """Train one epoch of a list of batches and return what was counted."""
    batches = [(torch.randn(32, 32), torch.randn(32, 1)) for _ in range(LAST + 5)]
    quiet: dict[str, Any] = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar"], False)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            enable_model_summary=False,
            default_root_dir=folder,
            **{**quiet, **flags},
        )
        trainer.fit(net, batches)
    if len(net.counting.steps) != LAST - FIRST:
        raise RuntimeError(f"{type(net).__name__}: counted {len(net.counting.steps)} steps, expected {LAST - FIRST}")
    return net.counting


def report(what: str, value: float, allowed: float, more: str = "") -> bool:
    """Print one line of the table; return whether the value is over its budget."""
    over = value > allowed
    print(f"{'OVER' if over else 'ok':>4}  {what:<52} {value:6.2f}  allowed {allowed:g}  {more}")
    return over


def show(counting: Counting) -> None:
    """Print which calls a step makes and what lies above it."""
    for name, count in counting.names.most_common():
        print(f"        {count / (LAST - FIRST):6.2f} a step  {name}")
    print("        above training_step: " + " < ".join(counting.chain))


def main() -> int:
    kinds = (Net, Logging, Averaging, Hooked, Closure)
    bare, logged, averaged, hooked, closure = (measure(kind()) for kind in kinds)
    watched = measure(Net(), callbacks=[Watching() for _ in range(6)])
    each = {
        n: median(c.steps)
        for n, c in (("bare", bare), ("logged", logged), ("averaged", averaged), ("hooked", hooked), ("cb", watched))
    }
    over = [
        report(
            "calls a step, bare automatic SGD", each["bare"], CALLS, f"mean {sum(bare.steps) / len(bare.steps):.2f}"
        ),
        report("calls more for each self.log", (each["logged"] - each["bare"]) / Logging.logs, CALLS_A_LOG),
        report("calls more for each with on_epoch", (each["averaged"] - each["bare"]) / Logging.logs, CALLS_A_LOG),
        report("calls more for each overridden hook of the module", (each["hooked"] - each["bare"]) / 6, CALLS_A_HOOK),
        report("calls more for each hook of 6 callbacks", (each["cb"] - each["bare"]) / 12, CALLS_A_HOOK),
        report("frames above training_step", bare.frames, FRAMES),
        report("frames above training_step, closure form", closure.frames, FRAMES_CLOSURE),
    ]
    if any(over) or "--verbose" in sys.argv:
        titles = ["bare", "5 logs", "5 averages", "6 hooks", "6 callbacks", "closure form"]
        for title, counting in zip(titles, (bare, logged, averaged, hooked, watched, closure), strict=True):
            print(f"    {title}")
            show(counting)
    return int(any(over))


if __name__ == "__main__":
    sys.exit(main())
