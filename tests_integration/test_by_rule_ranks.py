"""Optimizers by rules on ranks, under a loss scale, and from a command line."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from precision_cases import new_scaler, precision_of
from rank_cases import QUIET, Net
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, TensorDataset

from lt_core import Trainer
from lt_core.cli import LightningCLI, OptimizerCallable
from lt_core.optim import ByRule, Rule

SAMPLES = torch.arange(96.0).reshape(24, 4) / 96


def loader(batch_size: int) -> DataLoader[Any]:
    """Return a loader of 24 samples in their order."""
    return DataLoader(TensorDataset(SAMPLES, SAMPLES[:, :1]), batch_size=batch_size)


class Ruled(Net):
    """Network whose middle matrix has an optimizer of its own, thawed in the second epoch."""

    def configure_optimizers(self) -> Any:
        rules = [
            Rule("first|middle", dims=2, optimizer=partial(SGD, lr=0.05, momentum=0.9)),
            Rule(dims=1, weight_decay_factor=0),
        ]
        return ByRule(self, rules, partial(AdamW, lr=0.01))


class Thawing(Ruled):
    """The same network, its middle layer frozen in the first epoch."""

    def on_fit_start(self) -> None:
        self.middle.requires_grad_(self.current_epoch > 0)

    def setup(self, stage: str) -> None:
        self.middle.requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1 and not self.middle.weight.requires_grad:
            self.middle.requires_grad_(True)
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            optimizer.add_param_group({"params": self.middle.parameters()})


def trained(net: Net, folder: Path, ranks: int, **flags: Any) -> tuple[Trainer, list[Tensor]]:
    """Return the trainer, and the parameters of a network after two epochs."""
    several = {"devices": ranks, "strategy": "ddp_fork"} if ranks > 1 else {}
    trainer = Trainer(
        **QUIET, **{"max_epochs": 2, "gradient_clip_val": 0.3, **flags}, default_root_dir=folder, **several
    )
    trainer.fit(net, loader(8 // ranks))
    return trainer, [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("kind", [Ruled, Thawing])
def test_two_ranks_train_as_one_process(tmp_path: Path, kind: type[Ruled]) -> None:
    """On two ranks all parts train as in one process, parameters that are added later too; the optimizer comes back."""
    one, alone = trained(kind(), tmp_path, 1)
    two, pair = trained(kind(), tmp_path, 2)
    torch.testing.assert_close(pair, alone, rtol=0, atol=1e-6)
    assert str(two.optimizers[0]) == str(one.optimizers[0])
    mine, theirs = (trainer.optimizers[0].state_dict()["state"] for trainer in (two, one))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


class Overflowing(Ruled):
    """Network whose loss is infinite in one batch."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * (float("inf") if batch_idx == 1 else 1.0)


def test_a_loss_scale_skips_all_parts_or_none(tmp_path: Path) -> None:
    """With 16-bit floats all gradients are unscaled once, and a step that overflows is left out for all parts."""
    trainer, found = trained(Overflowing(), tmp_path, 1, plugins=precision_of("16-mixed", "cpu"))
    net = Overflowing()
    parts = {name: p for name, p in net.named_parameters() if name in ("first.weight", "middle.weight")}
    rest = [p for name, p in net.named_parameters() if name not in parts]
    flat, last = [p for p in rest if p.ndim == 1], [p for p in rest if p.ndim > 1]
    pair: Any = [
        SGD(parts.values(), lr=0.05, momentum=0.9),
        AdamW([{"params": last}, {"params": flat, "weight_decay": 0.0}], lr=0.01),
    ]
    scaler = new_scaler("cpu")
    for number, batch in enumerate([*loader(8), *loader(8)]):
        with torch.autocast("cpu", torch.float16):
            loss = net.training_step(batch, number % 3)
        net.zero_grad()
        scaler.scale(loss).backward()
        for each in pair:
            scaler.unscale_(each)
        nn.utils.clip_grad_norm_([*parts.values(), *last, *flat], 0.3)
        for each in pair:
            scaler.step(each)
        scaler.update()
    assert all(torch.equal(one, two) for one, two in zip(found, net.parameters(), strict=True))
    assert trainer.global_step == 4  # of six batches, two overflow


CONFIG = """
rules:
  - {dims: 2, exclude: first|last, optimizer: {class_path: SGD, init_args: {lr: 0.05, momentum: 0.9}}}
  - {dims: [0, 1], weight_decay_factor: 0}
default: {class_path: AdamW, init_args: {lr: 0.01}}
"""


class Injected(Net):
    """Network that is given what makes its optimizer.

    Args:
        optimizer: Makes it from the module.
    """

    def __init__(self, optimizer: OptimizerCallable = SGD) -> None:
        super().__init__()
        self.make = optimizer

    def train_dataloader(self) -> Any:
        return loader(8)

    def configure_optimizers(self) -> Any:
        return self.make(self)  # type: ignore[arg-type]


class Plain(Net):
    """Network whose optimizer comes from the command line."""

    configure_optimizers = None  # type: ignore[assignment]

    def train_dataloader(self) -> Any:
        return loader(8)


@pytest.mark.parametrize("kind", [Plain, Injected])
def test_a_command_line_takes_rules(tmp_path: Path, kind: type[Net], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules in a configuration file make the optimizer, by the module's names, as `--optimizer` or as an argument."""
    monkeypatch.setattr("sys.argv", ["lt"])
    text = "class_path: lt_core.optim.ByRule\ninit_args:" + CONFIG.replace("\n", "\n  ")
    (tmp_path / "optimizer.yaml").write_text(text, encoding="utf-8")
    key = "--optimizer" if kind is Plain else "--model.optimizer"
    quiet = [f"--trainer.{flag}=false" for flag in QUIET if QUIET[flag] is False]
    args = ["fit", f"{key}={tmp_path / 'optimizer.yaml'}", "--trainer.max_epochs=1", *quiet]
    cli = LightningCLI(kind, args=args, save_config_callback=None, seed_everything_default=False)
    assert str(cli.trainer.optimizers[0]).splitlines() == [
        "ByRule: 6 parameters in 3 groups",
        "  SGD        lr 0.05  weight_decay 0     64 values in 1: middle.weight",
        "  AdamW      lr 0.01  weight_decay 0.01  40 values in 2: first.weight, last.weight",
        "  AdamW_wd0  lr 0.01  weight_decay 0     17 values in 3: first.bias, middle.bias, last.bias",
    ]
