"""Test on a CUDA card that copies run beside the computing, that nothing waits for it, and that values are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lt_core import Callback, LightningModule, Trainer
from lt_core.callbacks import RichProgressBar
from lt_core.checkpoint import AsyncCheckpointIO, load_checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

QUIET: dict[str, Any] = {
    "accelerator": "cuda",
    "devices": 1,
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Random(Dataset[Tensor]):
    """Samples that their index gives."""

    def __init__(self, samples: int, width: int) -> None:
        self.samples, self.width = samples, width

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(self.width, generator=torch.Generator().manual_seed(index))


class Sums(LightningModule):
    """Module that keeps the card busy in front of each batch's sum, and keeps some batches for long."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)
        self.register_buffer("busy", torch.randn(2048, 2048))
        self.sums: list[Tensor] = []
        self.kept: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        for _ in range(10):
            self.busy = (self.busy @ self.busy).clamp(-1, 1)
        if batch_idx % 3 == 0:
            self.kept.append(batch)
        if batch_idx % 7 == 0:
            self.sums.extend(self.kept.pop().double().sum() for _ in range(len(self.kept)))
        self.sums.append(batch.double().sum())
        loss: Tensor = self.layer(batch).square().mean()
        for name in ("a", "b", "c", "d"):
            self.log(name, loss, on_epoch=True)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)


@pytest.mark.parametrize("pin", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_batch_arrives_whole(pin: bool, workers: int) -> None:
    """With the card far behind and batches kept for long, every batch is summed as the host has it."""
    width = 40_000
    runs = []
    for accelerator in ("cuda", "cpu"):
        module = Sums(width)
        loader = DataLoader(Random(320, width), batch_size=8, num_workers=workers, pin_memory=pin)
        if accelerator == "cpu":
            module.busy = torch.randn(2, 2)
        Trainer(**{**QUIET, "accelerator": accelerator}).fit(module, loader)
        runs.append([round(float(value), 3) for value in module.sums])
    assert runs[0] == pytest.approx(runs[1], abs=0.01)


class Strict(Callback):
    """Let torch raise where the host waits for the card, in all that lies between two logged steps."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % 10 == 2:
            torch.cuda.set_sync_debug_mode("error")
        self.steps += torch.cuda.get_sync_debug_mode() > 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % 10 == 8:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("flags", [{}, {"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}], ids=str)
def test_nothing_waits_for_the_card_between_logged_steps(precision: str, flags: dict[str, Any], tmp_path: Path) -> None:
    """With five values a step, a progress bar and a CSV file, no step between two logged ones synchronises."""
    strict = Strict()
    loader = DataLoader(Random(400, 1000), batch_size=4, num_workers=2, pin_memory=True)
    usual = {"logger": "csv", "log_every_n_steps": 10, "default_root_dir": tmp_path, "precision": precision}
    usual["enable_progress_bar"] = True
    try:
        Trainer(**{**QUIET, **usual, **flags, "callbacks": [strict, RichProgressBar()]}).fit(Sums(1000), loader)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert strict.steps >= 60


class Timed(LightningModule):
    """Module that marks each step on the card."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4096, 4096) / 64)
        self.marks: list[Any] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        self.marks.append(mark)
        loss: Tensor = batch
        for _ in range(6):
            loss = loss @ self.weight
        return loss.square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-9)

    def milliseconds(self) -> float:
        """Return the median time of a step, without the first ten."""
        torch.cuda.synchronize()
        times = sorted(a.elapsed_time(b) for a, b in zip(self.marks[10:], self.marks[11:], strict=False))
        return float(times[len(times) // 2])


def test_copies_are_hidden_behind_the_computing() -> None:
    """A step whose batch comes from pinned memory takes at most 5 % longer than one whose batch is there already."""
    here = torch.randn(4096, 4096).pin_memory()
    found = []
    for batch in (here.cuda(), here):
        module = Timed()
        Trainer(**QUIET).fit(module, [batch] * 60)
        found.append(module.milliseconds())
    assert found[1] <= 1.05 * found[0]


def test_a_set_on_the_card_gives_the_same_batches() -> None:
    """With data_on_device, shuffled batches are those of the loader, and no step waits for the card."""
    x, y = torch.randn(64, 100), torch.arange(64)
    seen: dict[bool, list[Any]] = {}

    class Keeps(Sums):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            seen.setdefault(self.trainer._config.data_on_device, []).append(batch)
            return super().training_step(batch[0], batch_idx)

    for resident in (False, True):
        torch.manual_seed(3)
        loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)
        Trainer(**{**QUIET, "data_on_device": resident}).fit(Keeps(100), loader)
    assert all(batch[0].is_cuda for batch in seen[True])
    for plain, kept in zip(seen[False], seen[True], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))


def test_an_asynchronous_save_holds_what_was_there(tmp_path: Path) -> None:
    """With the card far behind, a save returns at once, and what the next step changes is not in its file."""
    io, busy = AsyncCheckpointIO(), torch.randn(4096, 4096, device="cuda")
    weights = {name: torch.randn(1 << 20, device="cuda") for name in "abcd"}
    for turn in range(3):
        before = {name: weight.cpu() for name, weight in weights.items()}
        done = torch.cuda.Event()
        for _ in range(200):
            busy = (busy @ busy).clamp(-1, 1)
        done.record()
        io.save({"state_dict": weights}, tmp_path / "a.ckpt")
        assert turn == 0 or not done.query()  # the first save allocates pinned memory
        for weight in weights.values():
            weight.add_(1.0)
        io.wait()
        written = load_checkpoint(tmp_path / "a.ckpt")["state_dict"]
        assert all(torch.equal(written[name], before[name]) for name in weights)
