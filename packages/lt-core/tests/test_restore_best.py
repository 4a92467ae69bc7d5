"""Test RestoreBest: which weights a fit ends with, from memory and from a file, resumed, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from weights import BATCHES

from lt_core import LightningModule, Trainer
from lt_core.callbacks import EarlyStopping, EMAWeightAveraging, LambdaCallback, ModelCheckpoint, RestoreBest
from lt_interface import ConfigError, MisconfigurationException

FLAGS: dict[str, Any] = {**QUIET, "num_sanity_val_steps": 0}
LOSSES = [3.0, 1.0, 2.0, 4.0]


class Net(LightningModule):
    """Network whose validations log what they are given, and keep the weights that they saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.seen: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.layer(batch) - 1).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", LOSSES[self.current_epoch])

    def on_validation_epoch_start(self) -> None:
        self.seen.append(self.layer.weight.detach().clone())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(*callbacks: Any, ckpt_path: Any = None, **flags: Any) -> Net:
    net = Net()
    saves = any(isinstance(one, ModelCheckpoint) for one in callbacks)
    flags = {**FLAGS, "max_epochs": 4, "callbacks": list(callbacks), "enable_checkpointing": saves, **flags}
    Trainer(**flags).fit(net, BATCHES, BATCHES[:1], ckpt_path=ckpt_path)
    return net


@pytest.mark.parametrize(("mode", "best"), [("min", 1), ("max", 3)])
def test_the_module_ends_with_its_best_weights(mode: str, best: int, caplog: pytest.LogCaptureFixture) -> None:
    """The weights of the best validation are in the module after the fit, and a line says which they are."""
    with caplog.at_level("INFO"):
        net = fit(RestoreBest("val_loss", mode))
    assert torch.equal(net.layer.weight, net.seen[best])
    line = (
        f"RestoreBest: the module has the weights of epoch {best}, step {4 * best + 4} (val_loss={LOSSES[best]:.5g})."
    )
    assert line in caplog.messages


def test_the_best_file_serves_where_no_metric_is_given(tmp_path: Path) -> None:
    """Without a metric of its own it takes the best file; that of the end still resumes from the last weights."""
    net = fit(RestoreBest(), ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True))
    assert torch.equal(net.layer.weight, net.seen[1])
    kept = Net.load_from_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(kept.layer.weight, net.seen[3])


def test_an_average_is_what_is_kept() -> None:
    """Beside an averaging callback the best weights are the average that was validated, whichever comes first."""
    for order in (1, -1):
        net = fit(*[RestoreBest("val_loss"), EMAWeightAveraging(decay=0.5)][::order])
        assert torch.equal(net.layer.weight, net.seen[1])


def test_early_stopping_ends_with_the_best() -> None:
    """A stop for want of patience ends with the weights that were best before."""
    net = fit(EarlyStopping("val_loss", patience=2), RestoreBest("val_loss"))
    assert len(net.seen) == 4
    assert torch.equal(net.layer.weight, net.seen[1])


def test_a_resumed_run_still_has_the_best(tmp_path: Path) -> None:
    """A run cut inside an epoch behind the best one ends with the best weights of before."""

    def stop(trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 10:
            trainer.save_checkpoint(tmp_path / "a.ckpt")
            raise KeyboardInterrupt

    best = RestoreBest("val_loss")
    with pytest.raises(KeyboardInterrupt):
        fit(best, LambdaCallback(on_train_batch_end=stop))
    whole, again = fit(RestoreBest("val_loss")), fit(RestoreBest("val_loss"), ckpt_path=tmp_path / "a.ckpt")
    assert torch.equal(again.layer.weight, whole.seen[1])
    assert torch.equal(again.seen[-1], whole.seen[-1])


def test_a_callback_that_serves_again_begins_anew() -> None:
    """What an earlier training found is no measure for another one."""
    best = RestoreBest("val_loss", verbose=False)
    fit(best, max_epochs=2)
    net = fit(best, max_epochs=1)
    assert torch.equal(net.layer.weight, net.seen[0])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: RestoreBest("val_loss", "mim"), 'Did you mean "min"'),
        (lambda: RestoreBest(3), "monitor=3"),  # type: ignore[arg-type]
        (lambda: fit(RestoreBest()), "neither a monitor nor a ModelCheckpoint"),
        (lambda: fit(RestoreBest("valloss")), 'Did you mean "val_loss"'),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Any, text: str) -> None:
    """Wrong arguments, and a fit in which nothing can be the best, are one error."""
    with pytest.raises((ConfigError, MisconfigurationException), match=text):
        make()
