"""Test BaseFinetuning and BackboneFinetuning: what is trained when, at which rate, over a resume, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from torch.optim import lr_scheduler
from weights import BATCHES, assert_equal

from lt_core import LightningModule, Trainer
from lt_core.callbacks import BackboneFinetuning, BaseFinetuning, LambdaCallback
from lt_interface import ConfigError


class Net(LightningModule):
    """Backbone and head, whose optimizer gets what is trained from the beginning."""

    def __init__(self, schedule: Callable[[Any], Any] | None = None, only_trainable: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
        self.head = nn.Linear(3, 1)
        self.schedule, self.only_trainable = schedule, only_trainable
        self.rates: list[list[float]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == 0:
            self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        return (self.head(self.backbone(batch)) - 1).square().mean()

    def configure_optimizers(self) -> Any:
        params = [p for p in self.parameters() if p.requires_grad or not self.only_trainable]
        optimizer = torch.optim.Adam(params, lr=0.1)
        return [optimizer], [] if self.schedule is None else [self.schedule(optimizer)]


class Stages(BaseFinetuning):
    """Callback that trains the head, from epoch 1 the last layer, and from epoch 2 the first one too."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Any) -> None:
        backbone: Any = pl_module.backbone
        if epoch == 1:
            self.unfreeze_and_add_param_group(backbone[2], optimizer)
        if epoch == 2:
            self.unfreeze_and_add_param_group([backbone[0], backbone[1]], optimizer, lr=0.02)


def fit(callback: Any, epochs: int = 4, net: Net | None = None, ckpt_path: Any = None, **flags: Any) -> Net:
    net = net or Net()
    callbacks = [callback, *flags.pop("callbacks", [])]
    Trainer(**QUIET, max_epochs=epochs, callbacks=callbacks, **flags).fit(net, BATCHES, ckpt_path=ckpt_path)
    return net


def test_layers_are_trained_from_their_epochs_on() -> None:
    """Training in stages is that of a loop by hand which adds each layer to the optimizer at its epoch."""
    net, hand = fit(Stages()), Net()
    hand.backbone.requires_grad_(False)
    norm: Any = hand.backbone[1]
    norm.track_running_stats = False
    optimizer = torch.optim.Adam(hand.head.parameters(), lr=0.1)
    for epoch in range(4):
        if epoch == 1:
            optimizer.add_param_group({"params": list(hand.backbone[2].requires_grad_().parameters()), "lr": 0.01})
        if epoch == 2:
            norm.track_running_stats = True
            layers = [*hand.backbone[0].requires_grad_().parameters(), *norm.requires_grad_().parameters()]
            optimizer.add_param_group({"params": layers, "lr": 0.02})
        for batch in BATCHES:
            optimizer.zero_grad()
            (hand.head(hand.backbone(batch)) - 1).square().mean().backward()
            optimizer.step()
    assert_equal(net, hand)


def test_the_backbone_s_rate_rises_to_the_head_s() -> None:
    """BackboneFinetuning unfreezes at its epoch and multiplies the rate, until it is that of the first group."""
    first = fit(BackboneFinetuning(1, backbone_initial_ratio_lr=0.2), epochs=5).rates
    assert [pytest.approx(rates) for rates in first] == [[0.1], [0.1, 0.02], [0.1, 0.04], [0.1, 0.08], [0.1, 0.1]]
    free = BackboneFinetuning(1, lambda epoch: 3.0, backbone_initial_lr=0.05, should_align=False)
    assert fit(free, epochs=3).rates[-1] == pytest.approx([0.1, 0.15])


@pytest.mark.parametrize("train_bn", [True, False])
def test_batch_norm_is_trained_as_it_is_asked(train_bn: bool) -> None:
    """With train_bn the norms are trained all the time; without it they never are, and nothing else is touched."""
    net = fit(BackboneFinetuning(1, train_bn=train_bn), epochs=1)
    assert [net.backbone[i].weight.requires_grad for i in (0, 1)] == [False, train_bn]
    assert torch.equal(net.backbone[1].weight, torch.ones(3)) is not train_bn
    assert torch.equal(net.backbone[1].running_mean, torch.zeros(3)) is not train_bn
    net = fit(BackboneFinetuning(1, train_bn=train_bn), epochs=2)
    assert [net.backbone[i].weight.requires_grad for i in (0, 1)] == [True, train_bn]


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 1, 0.5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "cycle": lambda o: {"scheduler": lr_scheduler.OneCycleLR(o, 0.1, total_steps=40), "interval": "step"},
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch)], [3]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedulers_go_on_with_groups_that_are_added(name: str) -> None:
    """A group that is added keeps its ratio to the first one, whatever the scheduler keeps by group."""
    rates = fit(Stages(), net=Net(SCHEDULES[name]), epochs=5).rates
    assert len({each[0] for each in rates}) > 1
    for each in rates[2:]:
        assert each[1] / each[0] == pytest.approx(rates[1][1] / rates[1][0])
        assert each[2] / each[0] == pytest.approx(rates[2][2] / rates[2][0])


@pytest.mark.parametrize("at", [2, 4, 6, 11])
@pytest.mark.parametrize("schedule", ["lambda", "cycle"])
@pytest.mark.parametrize("make", [Stages, lambda: BackboneFinetuning(1)])
def test_a_resumed_run_has_the_groups_again(make: Any, schedule: str | None, at: int, tmp_path: Path) -> None:
    """A run cut in any epoch, or at its end, goes on to the same weights and rates, to the bit."""

    def save(trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == at:
            trainer.request_checkpoint(tmp_path / "a.ckpt")
            trainer.should_stop = True

    def net() -> Net:
        return Net(None if schedule is None else SCHEDULES[schedule])

    whole = fit(make(), net=net())
    fit(make(), net=net(), callbacks=[LambdaCallback(on_train_batch_end=save)])
    again = fit(make(), net=net(), ckpt_path=tmp_path / "a.ckpt")
    assert_equal(again, whole)
    assert again.rates[-1] == whole.rates[-1]
    assert [p.requires_grad for p in again.parameters()] == [True] * 8


def test_another_fit_goes_on_with_what_is_trained() -> None:
    """A second fit of the trainer trains the layers that the first one had come to; another trainer begins anew."""
    callback = Stages()
    net = fit(callback, epochs=3)
    net.trainer.max_epochs = 4
    net.trainer.fit(net, BATCHES)
    assert len(net.rates[-1]) == 3
    assert all(p.requires_grad for p in net.parameters())
    assert len(fit(callback, epochs=1).rates[-1]) == 1


def test_an_optimizer_that_holds_all_keeps_its_group() -> None:
    """Parameters that the optimizer holds already stay where they are, with a warning, and the rate is not touched."""
    with pytest.warns(UserWarning, match="holds 4 of these parameters already"):
        net = fit(BackboneFinetuning(1), net=Net(only_trainable=False), epochs=3)
    assert net.rates[-1] == [0.1]
    assert not torch.equal(net.backbone[0].weight, Net().backbone[0].weight)


def test_an_optimizer_of_named_parameters_gets_groups_too(tmp_path: Path) -> None:
    """Where the optimizer was given names, a group that is added has some, and is resumed."""

    class Named(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam([(name, p) for name, p in self.named_parameters() if p.requires_grad], lr=0.1)

    def save(trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 6:
            trainer.request_checkpoint(tmp_path / "a.ckpt")

    whole = fit(Stages(), net=Named(), callbacks=[LambdaCallback(on_train_batch_end=save)])
    assert_equal(fit(Stages(), net=Named(), ckpt_path=tmp_path / "a.ckpt"), whole)
    assert_equal(whole, fit(Stages()))


class Late(Net):
    """Network whose layers are made in configure_model."""

    def __init__(self) -> None:
        super().__init__()
        del self.backbone

    def configure_model(self) -> None:
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))


def test_layers_of_configure_model_are_frozen_too() -> None:
    """Layers that exist only after setup are frozen before the first batch, and join the optimizer at their epoch."""
    net = fit(Stages(), net=Late(), epochs=1)
    assert torch.equal(net.backbone[2].weight, Net().backbone[2].weight)
    assert fit(Stages(), net=Late()).rates == fit(Stages()).rates


def test_the_tools_take_nested_layers() -> None:
    """Layers come as modules, lists, dicts and containers; parameters are told apart by what is trained."""
    net = Net()
    layers = [{"a": net.backbone}, nn.ModuleList([net.head]), nn.ModuleDict({"b": nn.Linear(1, 1)})]
    assert len(BaseFinetuning.flatten_modules(layers)) == 5  # type: ignore[arg-type]
    BaseFinetuning.freeze(net, train_bn=True)
    assert len(list(BaseFinetuning.filter_params(net))) == 2
    assert len(list(BaseFinetuning.filter_params(net, train_bn=False, requires_grad=False))) == 6
    BaseFinetuning.make_trainable(net.head)
    assert len(list(BaseFinetuning.filter_params(net, train_bn=False))) == 2
    optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
    assert BaseFinetuning.filter_on_optimizer(optimizer, net.backbone[0].parameters()) == [
        *net.backbone[0].parameters()
    ]


class Misspelt(Stages):
    """Callback that freezes a layer which is not there."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.bakbone)


class ByName(Stages):
    """Callback that freezes a layer's name."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze("backbone")


class Headless(Net):
    """Network whose backbone has another name."""

    def __init__(self) -> None:
        super().__init__()
        self.back_bone = self.backbone
        del self.backbone


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: BackboneFinetuning(-1), "unfreeze_backbone_at_epoch=-1"),
        (lambda: BackboneFinetuning(lambda_func=2.0), "lambda_func=2.0"),  # type: ignore[arg-type]
        (lambda: BackboneFinetuning(backbone_initial_lr=0.0), "backbone_initial_lr=0.0"),
        (lambda: fit(BackboneFinetuning(), net=Headless()), 'Did you mean "back_bone"'),
        (lambda: fit(Misspelt()), 'Did you mean "backbone"'),
        (lambda: fit(ByName()), "must be modules"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Any, text: str) -> None:
    """Wrong arguments and missing layers are one error before the first batch."""
    with pytest.raises(ConfigError, match=text):
        make()


def test_errors_of_the_user_s_own_pass() -> None:
    """An AttributeError that is not of the module's layers is the user's to see."""

    class Wrong(Stages):
        def freeze_before_training(self, pl_module: LightningModule) -> None:
            self.nothing.here  # type: ignore[attr-defined]  # noqa: B018

    with pytest.raises(AttributeError, match="nothing"):
        fit(Wrong())
