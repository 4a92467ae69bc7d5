"""Gradients that are computed again in the place of a step, and runs that begin where one broke off, under a scale."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from precision_cases import CLIP, FLAGS, ByHand, Net, by_trainer, loader, precision_of, same_weights
from torch import Tensor, nn

from lt_core import Trainer
from lt_interface import ConfigError, MissingPackageError


class Twice(Net):
    """Module that computes gradients twice a step, with the optimizer's closure."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        closure()
        optimizer.step(closure=closure)


class ByItself(Net):
    """Module that clips the gradients of one loss, drops them, and steps with those of another.

    Args:
        form: As for `Net`; it optimizes manually in any case.
        fused: Whether the optimizer is a fused one.
        to_none: How the gradients are cleared.
    """

    def __init__(self, form: str = "manual", fused: bool = False, to_none: bool = True) -> None:
        super().__init__("manual", fused)
        self.to_none = to_none

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        for factor in (100.0, 1.0):
            optimizer.zero_grad(self.to_none)
            self.manual_backward(nn.functional.mse_loss(self.net(batch[0]), batch[1]) * factor)
            self.clip_gradients(optimizer, gradient_clip_val=CLIP)
        optimizer.step()
        self.lr_schedulers().step()


class Zeroing(ByItself):
    """The same, with gradients that are cleared to zeros."""

    def __init__(self, form: str = "manual", fused: bool = False) -> None:
        super().__init__(form, fused, to_none=False)


@pytest.mark.parametrize("fused", [False, True], ids=["loops", "fused"])
@pytest.mark.parametrize("module", [Twice, ByItself, Zeroing])
def test_gradients_that_are_computed_again_are_unscaled_again(module: type[Net], fused: bool) -> None:
    """A step takes the true size of what was computed last, whatever was unscaled and cleared before it."""
    hand = ByHand("16-mixed", "norm", "cpu", fused=fused).train()
    flags = {"gradient_clip_val": CLIP} if module is Twice else {}
    _, net = by_trainer("16-mixed", "plain", "cpu", fused=fused, module=module, **flags)
    same_weights(net.net, hand.net)


def test_an_overflow_that_was_dropped_lowers_the_scale_and_skips_nothing() -> None:
    """Where the first of two gradients overflows and the second does not, the step is made, and the scale halved."""

    class First(Twice):
        calls = 0

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.calls += 1
            return super().training_step(batch, batch_idx) * (torch.inf if self.calls == 1 else 1.0)

    trainer, net = by_trainer("16-mixed", "plain", "cpu", module=First, gradient_clip_val=CLIP, max_steps=1)
    assert isinstance(net, First)
    assert (trainer.global_step, net.calls) == (1, 2)
    assert trainer.scaler is not None
    assert trainer.scaler.get_scale() == 2.0**9
    assert all(bool(p.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize("kept", [False, True], ids=["new optimizer", "same optimizer"])
def test_a_fit_after_one_that_broke_off_before_its_step_is_as_the_first(kept: bool) -> None:
    """What was unscaled when a hook raised is forgotten: the same trainer trains on as a loop does from its start."""

    class Breaking(Net):
        broken, made = False, None

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if not self.broken:
                self.broken = True
                raise KeyboardInterrupt

        def configure_optimizers(self) -> Any:
            if self.made is None or not kept:
                self.made = super().configure_optimizers()
            return self.made

    net = Breaking()
    trainer = Trainer(**{**FLAGS, "accelerator": "cpu", "precision": precision_of("16-mixed", "cpu")})
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(net, loader())
    trainer.fit(net, loader())
    hand = ByHand("16-mixed", "plain", "cpu").train()
    same_weights(net.net, hand.net)
    assert trainer.scaler is not None
    assert hand.scaler is not None
    assert trainer.scaler.state_dict() == hand.scaler.state_dict()


def test_steps_that_are_skipped_without_end_are_reported() -> None:
    """Where gradients are nan at every scale, one warning says so after 40 steps, which no run of overflows reaches."""

    class Never(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * torch.nan

    with pytest.warns(UserWarning, match="40 steps in a row were skipped") as caught:
        by_trainer("16-mixed", "plain", "cpu", module=Never, max_epochs=12)
    assert len(caught) == 1


class Often(Net):
    """Module that steps several times in a batch, each time for a new forward pass.

    Args:
        form: As for `Net`; it optimizes manually in any case.
        fused: Whether the optimizer is a fused one.
    """

    def __init__(self, form: str = "manual", fused: bool = False) -> None:
        super().__init__("manual", fused)

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        for _ in range(3):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.mse_loss(self.net(batch[0]), batch[1]))
            self.change(optimizer)

    def change(self, optimizer: Any) -> None:
        """Step through the trainer."""
        optimizer.step()


class Raw(Often):
    """The same, past the trainer."""

    def change(self, optimizer: Any) -> None:
        optimizer.optimizer.step()


class Pulled(Often):
    """The same, with weights that are changed by hand."""

    def change(self, optimizer: Any) -> None:
        optimizer.step()
        with torch.no_grad():
            for p in self.net.parameters():
                p.mul_(0.9)


@pytest.mark.parametrize(("name", "module"), [("16-mixed", Often), *(("bf16-mixed", m) for m in (Often, Raw, Pulled))])
def test_each_forward_pass_of_a_batch_has_the_weights_of_that_moment(name: str, module: type[Often]) -> None:
    """Steps inside one training_step are those of a loop with a context of its own around each forward pass."""
    hand = ByHand(name, "plain", "cpu")
    hand.schedule = torch.optim.lr_scheduler.StepLR(hand.optimizer, 1, 1.0)
    for x, y in hand.batches:
        for _ in range(3):
            hand.optimizer.zero_grad()
            hand.backward(hand.loss(x, y))
            hand.update()
            if module is Pulled:
                with torch.no_grad():
                    for p in hand.net.parameters():
                        p.mul_(0.9)
    _, net = by_trainer(name, "plain", "cpu", module=module, max_epochs=1)
    same_weights(net.net, hand.net)


@pytest.mark.parametrize(
    ("others", "texts"),
    [
        ({"accelerator": "cpu", "strategy": "single_device", "devices": 2}, ["uses one device of one node"]),
        ({"max_epochs": -5, "strategy": "dpp"}, ["max_epochs=-5", "dpp"]),
        ({"accelerator": "cpu", "devices": "x"}, ["devices='x'"]),
        ({"accelerator": "mps"}, ["accelerator='mps'"]),
    ],
)
@pytest.mark.parametrize("name", ["float8", "transformer-engine"])
def test_a_missing_package_is_reported_with_all_else(
    name: str, others: dict[str, Any], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a trainer has other problems too, one error lists them all; alone it keeps its type."""
    package = {"float8": "torchao", "transformer-engine": "transformer_engine"}[name]
    for module in [found for found in sys.modules if found.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"{len(texts) + 1} problems") as error:
        Trainer(precision=name, **{"max_epochs": 1, **others})
    for text in (f"the package {package} is needed", *texts):
        assert text in str(error.value)
    with pytest.raises(MissingPackageError, match="is needed"):
        Trainer(precision=name, accelerator="cpu", max_epochs=1)
