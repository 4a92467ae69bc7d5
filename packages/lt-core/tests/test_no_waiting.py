"""Count how often a run reads a value that a device is still to compute: never between two logged steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import SILENT
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lt_core import LightningModule, Trainer
from lt_core.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lt_interface import registry

EVERY, STEPS = 10, 30
READS = {"item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__", "__array__", "__repr__"}


class Reads(TorchDispatchMode):
    """Count of reads, of any tensor whatsoever."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Reads.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Far(Tensor):
    """Tensor that says it lies on an accelerator, as does all that is computed from it."""

    is_cpu = False

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS:
            with torch._C.DisableTorchFunctionSubclass(), quiet():
                found = func(*args, **(kwargs or {}))
            Reads.count += 1
            return found
        return super().__torch_function__(func, types, args, kwargs or {})


@contextmanager
def quiet() -> Iterator[None]:
    """Let one read count once, though it may be made of others."""
    before = Reads.count
    yield
    Reads.count = before


class Net(LightningModule):
    """Module that logs five values a step, and notes how many reads each step came behind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(4, 1)
        self.counts: list[int] = []

    def loss(self, batch: Tensor) -> Tensor:
        loss: Tensor = self.layer(batch).square().mean()
        assert loss.device.type == "cuda"
        self.log("loss", loss, prog_bar=True)
        self.log("both", loss * 2, on_step=True, on_epoch=True)
        self.log("epoch", loss * 3, on_step=False, on_epoch=True)
        self.log("half", loss.to(torch.bfloat16), prog_bar=True)
        self.log("largest", loss.detach(), on_step=True, on_epoch=True, reduce_fx="max")
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.counts.append(Reads.count)
        return self.loss(batch)

    def on_train_end(self) -> None:
        self.counts.append(Reads.count)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class ByHand(Net):
    """Two optimizers in turn, stepped by the user's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.01), torch.optim.SGD(self.parameters(), lr=0.02)]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.counts.append(Reads.count)
        for optimizer in self.optimizers():
            loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, 1.0, "norm")
            optimizer.step()


class Closure(Net):
    """Step inside a closure, through an override."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)


class Dict(Net):
    """Outputs that go on to the hooks."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "extra": batch}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert outputs["loss"].device.type == "cuda"


class Validating(Net):
    """Module that validates at the epoch's end, where values are read."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.layer(batch).square().mean())

    def val_dataloader(self) -> Any:
        return batches(2)


def batches(n: int) -> list[Tensor]:
    return [torch.ones(2, 4).mul(i + 1).as_subclass(Far) for i in range(n)]


def run(module: Net, folder: Path, **flags: Any) -> list[int]:
    """Train, and return how many reads followed the beginning of each step."""
    usual = {"max_epochs": 1, "log_every_n_steps": EVERY, "default_root_dir": folder, "num_sanity_val_steps": 0}
    with Reads():
        Trainer(**{**SILENT, **usual, **flags}).fit(module, batches(STEPS))
    counts = module.counts
    return [after - before for before, after in pairwise(counts)]


def instant_bar(interval: float = 0.0) -> RichProgressBar:
    """Return a bar that draws at every batch."""
    bar = RichProgressBar()
    bar._line_interval = interval
    return bar


CASES: dict[str, tuple[Callable[[], Net], dict[str, Any]]] = {
    "automatic": (Net, {}),
    "accumulation": (Net, {"accumulate_grad_batches": 2}),
    "clip norm": (Net, {"gradient_clip_val": 0.5}),
    "clip value": (Net, {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}),
    "manual, several optimizers": (ByHand, {}),
    "closure": (Closure, {}),
    "dict": (Dict, {}),
    "bf16-mixed": (Net, {"precision": "bf16-mixed"}),
    "bar": (Net, {"enable_progress_bar": True}),
    "callbacks": (Validating, {"enable_progress_bar": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_read_between_logged_steps(case: str, tmp_path: Path) -> None:
    """With five values a step, a progress bar and a CSV file, a step waits for nothing, and a logged one once."""
    kind, flags = CASES[case]
    if flags.get("precision") not in (None, *registry.precisions.names()):
        pytest.skip("this precision comes with lt-accel")
    flags = dict(flags)
    if flags.get("enable_progress_bar"):
        flags["callbacks"] = [instant_bar()]
    if case == "callbacks":
        flags["callbacks"] += [
            ModelCheckpoint(tmp_path / "kept", monitor="val"),
            EarlyStopping("val"),
            LearningRateMonitor("step"),
        ]
    found = run(kind(), tmp_path, **flags)
    a_window = flags.get("accumulate_grad_batches", 1)
    logged = {EVERY * (a_window * i) - 1 for i in range(1, 4)}
    first = {0} if "enable_progress_bar" in flags else set()
    assert found[: STEPS - 1] == [int(i in logged) if i not in first else found[0] for i in range(STEPS - 1)]
    assert found[0] <= 1


def test_a_long_time_without_a_logged_step_is_read_at_its_end(tmp_path: Path) -> None:
    """Where no step is logged until the epoch's end, each value is still there, and nothing was read before."""
    module = Net()
    found = run(module, tmp_path, log_every_n_steps=1000)
    assert found[: STEPS - 1] == [0] * (STEPS - 1)
    history = module.trainer.callback_metrics
    assert history["both_epoch"].item() == pytest.approx(history["epoch"].item() * 2 / 3)
