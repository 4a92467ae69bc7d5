"""Test ModelPruning: what it prunes, what files hold, resumes, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from torch.nn.utils import prune
from weights import BATCHES, assert_equal

from lt_core import Callback, LightningModule, Trainer
from lt_core.callbacks import (
    BaseFinetuning,
    EMAWeightAveraging,
    LambdaCallback,
    ModelCheckpoint,
    ModelPruning,
    RestoreBest,
)
from lt_core.checkpoint import load_checkpoint
from lt_interface import ConfigError


class Net(LightningModule):
    """Network of two layers, trained by Adam with weight decay."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2, bias=False)

    def forward(self, batch: Tensor) -> Tensor:
        found: Tensor = self.last(self.first(batch).relu())
        return found

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self(batch) - 1).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def fit(pruning: Any, epochs: int = 3, net: Net | None = None, ckpt_path: Any = None, **flags: Any) -> Net:
    net = net or Net()
    callbacks = [*([] if pruning is None else [pruning]), *flags.pop("callbacks", [])]
    saves = any(isinstance(one, ModelCheckpoint) for one in callbacks)
    flags = {**QUIET, "max_epochs": epochs, "callbacks": callbacks, "enable_checkpointing": saves, **flags}
    Trainer(**flags).fit(net, BATCHES, ckpt_path=ckpt_path)
    return net


def zeros(net: nn.Module) -> int:
    return sum(int((value == 0).sum()) for value in net.state_dict().values())


@pytest.mark.parametrize("lottery", [True, False])
def test_pruning_is_that_of_a_loop_by_hand(lottery: bool) -> None:
    """Each epoch's end prunes half of what is left, of all weights together, as torch does by hand."""
    net = fit(ModelPruning("l1_unstructured", parameter_names=["weight"], use_lottery_ticket_hypothesis=lottery))
    hand = Net()
    firsts = {id(layer): layer.weight.detach().clone() for layer in (hand.first, hand.last)}
    optimizer, pairs = hand.configure_optimizers(), [(hand.first, "weight"), (hand.last, "weight")]
    for _ in range(3):
        for batch in BATCHES:
            optimizer.zero_grad()
            hand.training_step(batch, 0).backward()
            optimizer.step()
        hand(BATCHES[0])  # which computes the weights anew
        prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=0.5)
        for layer in (hand.first, hand.last) if lottery else ():
            layer.weight_orig.data.copy_(firsts[id(layer)])  # type: ignore[union-attr]
    for layer, name in pairs:
        prune.remove(layer, name)
    assert_equal(net, hand)
    assert zeros(net) == 30 - 30 // 8


def largest(module: nn.Module, name: str, amount: Any) -> None:
    """Prune what is largest."""
    prune.l1_unstructured(module, name, amount, importance_scores=-getattr(module, name).abs())


METHODS: dict[str, Callable[[], ModelPruning]] = {
    "l1": lambda: ModelPruning("l1_unstructured", amount=0.3),
    "random": lambda: ModelPruning("random_unstructured", use_lottery_ticket_hypothesis=False),
    "each": lambda: ModelPruning(prune.L1Unstructured, use_global_unstructured=False, amount=1),
    "slices": lambda: ModelPruning(
        "ln_structured", [], ["weight"], False, 0.3, pruning_dim=0, pruning_norm=2, use_lottery_ticket_hypothesis=False
    ),
    "drawn": lambda: ModelPruning(
        "random_structured", [], ["weight"], False, 1, lambda epoch: epoch < 2, pruning_dim=1, resample_parameters=True
    ),
    "function": lambda: ModelPruning(prune.l1_unstructured, use_global_unstructured=True, amount=lambda epoch: epoch),
    "own": lambda: ModelPruning(largest, use_global_unstructured=False, amount=1),
    "lasting": lambda: ModelPruning("l1_unstructured", make_pruning_permanent=False),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("at", [2, 6, 11])
def test_a_resumed_run_is_pruned_as_before(name: str, at: int, tmp_path: Path) -> None:
    """A run cut in any epoch, saved there or after the fit, goes on with its masks to the same weights, to the bit."""

    def save(trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == at:
            if at < 11:
                trainer.request_checkpoint(tmp_path / "a.ckpt")
            trainer.should_stop = True

    whole = fit(METHODS[name](), epochs=4)
    part = fit(METHODS[name](), epochs=4, callbacks=[LambdaCallback(on_train_batch_end=save)])
    if at == 11:
        part.trainer.save_checkpoint(tmp_path / "a.ckpt")
    torch.manual_seed(9)
    assert_equal(fit(METHODS[name](), epochs=4, ckpt_path=tmp_path / "a.ckpt"), whole)
    assert zeros(whole)


def test_a_resumed_run_clips_the_same(tmp_path: Path) -> None:
    """Where only weights are pruned the order of parameters changes, and what is summed in it is still the same."""
    flags: dict[str, Any] = {"gradient_clip_val": 0.05, "epochs": 6}
    pruned = {"parameter_names": ["weight"], "amount": 0.1, "use_lottery_ticket_hypothesis": False}
    flags["callbacks"] = [ModelCheckpoint(tmp_path, every_n_train_steps=6, save_top_k=-1)]
    whole = fit(ModelPruning("l1_unstructured", **pruned), **flags)
    rest = fit(ModelPruning("l1_unstructured", **pruned), ckpt_path=tmp_path / "epoch=1-step=6.ckpt", **flags)
    assert [len(p.shape) for p in rest.trainer.optimizers[0].param_groups[0]["params"]] == [2, 1, 2]
    assert_equal(whole, rest)


def test_files_load_without_pruning(tmp_path: Path) -> None:
    """Checkpoints, those of weights alone too, hold plain parameters with zeros; training goes on without pruning."""
    savers = [
        ModelCheckpoint(tmp_path, "{epoch}-w", save_weights_only=True, every_n_epochs=1, save_top_k=-1),
        ModelCheckpoint(tmp_path, "{epoch}-a", every_n_epochs=2, save_top_k=-1),
    ]
    fit(ModelPruning("l1_unstructured", use_lottery_ticket_hypothesis=False), epochs=4, callbacks=savers)
    for file in ("epoch=1-w.ckpt", "epoch=1-a.ckpt"):
        tree = load_checkpoint(str(tmp_path / file))
        assert set(tree["state_dict"]) == set(Net().state_dict())
        assert zeros(Net.load_from_checkpoint(tmp_path / file)) == 27
    with pytest.warns(UserWarning, match="callbacks that are not here"):
        again = fit(None, epochs=3, ckpt_path=tmp_path / "epoch=1-a.ckpt")
    assert zeros(again) < 27


def test_the_module_keeps_masks_where_they_are_not_made_permanent() -> None:
    """Without permanence the module ends as torch prunes it, and can be made plain later."""
    pruning = ModelPruning("l1_unstructured", make_pruning_permanent=False)
    net = fit(pruning)
    assert "first.weight_mask" in net.state_dict()
    pruning.make_pruning_permanent(net)
    assert_equal(net, fit(ModelPruning("l1_unstructured")))


def test_another_fit_goes_on_with_the_masks() -> None:
    """What was pruned in a fit stays pruned in the trainer's next one."""
    net = fit(ModelPruning("l1_unstructured", apply_pruning=lambda epoch: epoch == 1), epochs=2)
    mask = net.first.weight == 0
    net.trainer.max_epochs = 3
    net.trainer.fit(net, BATCHES)
    assert mask.any()
    assert torch.equal(net.first.weight == 0, mask)


class Untouched(Callback):
    """Callback that lets no training begin."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pytest.fail("a training began")


class Late(BaseFinetuning):
    """Callback that trains the first layer from epoch 1 on."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.first)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.make_trainable(pl_module.first)


@pytest.mark.parametrize("pruned_first", [True, False])
def test_another_fit_trains_what_was_unfrozen(pruned_first: bool, tmp_path: Path) -> None:
    """Layers that were unfrozen are trained in the next fit and from a file, though pruning gave them other names."""

    def callbacks() -> list[Any]:
        both = [ModelPruning("l1_unstructured", amount=0.1), Late()]
        return both if pruned_first else both[::-1]

    net, rest = Net(), Net()
    trainer = Trainer(**QUIET, max_epochs=2, callbacks=callbacks())
    trainer.fit(net, BATCHES)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    trainer.max_epochs = 3
    trainer.fit(net, BATCHES)
    fit(None, net=rest, callbacks=callbacks(), ckpt_path=tmp_path / "end.ckpt")
    assert all(p.requires_grad for each in (net, rest) for p in each.parameters())
    assert_equal(rest, fit(None, callbacks=callbacks()))


def test_a_subclass_chooses_and_follows_what_is_pruned() -> None:
    """The methods that subclasses of Lightning's callback override are those that are called."""
    called: list[Any] = []

    class OnlyWeights(ModelPruning):
        def filter_parameters_to_prune(self, parameters_to_prune: Any = ()) -> Any:
            return [(layer, name) for layer, name in parameters_to_prune if name == "weight"]

        def apply_pruning(self, amount: Any) -> None:
            called.append(amount)
            super().apply_pruning(amount)

        def apply_lottery_ticket_hypothesis(self) -> None:
            called.append("lottery")
            super().apply_lottery_ticket_hypothesis()

    net = fit(OnlyWeights("l1_unstructured", amount=10), epochs=1)
    assert called == [10, "lottery"]
    assert zeros(net) == int((net.first.weight == 0).sum() + (net.last.weight == 0).sum()) == 10


def test_values_that_are_not_left_are_explained() -> None:
    """A number of values that was there at first and is not later on is an error that shows both."""
    with pytest.raises(ConfigError, match=r"amount=20\): no more values .* left. Got in epoch 1, .*=16. Write a frac"):
        fit(ModelPruning("l1_unstructured", amount=20))


def test_validation_s_end_may_be_the_moment(caplog: pytest.LogCaptureFixture) -> None:
    """Pruning after validation leaves the sanity check alone, and reports what it prunes if it is asked to."""

    class Validated(Net):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.seen = zeros(self)

    net = Validated()
    pruning = ModelPruning("l1_unstructured", [(net.first, "weight")], prune_on_train_epoch_end=False, verbose=2)
    trainer = Trainer(**QUIET, max_epochs=1, callbacks=[pruning])
    with caplog.at_level("INFO", "lt_core"):
        trainer.fit(net, BATCHES, BATCHES[:1])
    assert (net.seen, zeros(net)) == (0, 9)
    text = "L1Unstructured, amount 0.5: of first.weight, 0 of 18 (0.00%) were pruned, now 9 of 18 (50.00%)."
    assert f"ModelPruning: {text}" in caplog.messages


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ModelPruning("l1_unstructurd"), 'Did you mean "l1_unstructured"'),
        (lambda: ModelPruning(3), "must be a name"),  # type: ignore[arg-type]
        (lambda: ModelPruning(nn.Linear), "must be a name"),
        (lambda: ModelPruning("ln_structured", pruning_dim=0, pruning_norm=1), "use_global_unstructured=False"),
        (lambda: ModelPruning("random_structured", use_global_unstructured=False), "needs pruning_dim"),
        (lambda: ModelPruning("ln_structured", use_global_unstructured=False, pruning_dim=0), "needs pruning_norm"),
        (lambda: ModelPruning("l1_unstructured", amount=1.5), "amount=1.5"),
        (lambda: ModelPruning("l1_unstructured", amount=True), "amount=True"),
        (lambda: ModelPruning("l1_unstructured", verbose=3), "verbose=3"),
        (lambda: fit(ModelPruning("l1_unstructured", amount=37)), "are left. Got 37 of 36"),
        (
            lambda: fit(
                ModelPruning("random_structured", (), ["weight"], False, amount=3, pruning_dim=0),
                callbacks=[Untouched()],
            ),
            "are left. Got 3 of 2",
        ),
        (lambda: ModelPruning("l1_unstructured", ["weight"]), "pairs of a layer"),  # type: ignore[list-item]
        (lambda: fit(ModelPruning("l1_unstructured", [(nn.Linear(1, 1), "weight")])), "must be one of Net"),
        (lambda: fit(ModelPruning("l1_unstructured", parameter_names=["wieght"])), 'Did you mean "weight"'),
        (
            lambda: fit(METHODS["lasting"](), callbacks=[RestoreBest("loss")]),
            "the best weights are plain parameters",
        ),
        (lambda: fit(ModelPruning("l1_unstructured"), callbacks=[EMAWeightAveraging()]), "EMAWeightAveraging"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Any, text: str) -> None:
    """Wrong arguments, and parameters that are missing, are one error before the first batch."""
    with pytest.raises(ConfigError, match=text):
        make()


def test_a_missing_parameter_is_named() -> None:
    """A pair whose layer lacks the parameter is refused with the nearest name."""
    net = Net()
    with pytest.raises(ConfigError, match=r"last has no parameter 'bias'.*It has: weight"):
        fit(ModelPruning("l1_unstructured", [(net.first, "weight"), (net.last, "bias")]), net=net)
