"""What comes back from ranks where the module, its optimizers or its values are unusual."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # the first optimizer imports it, which takes seconds: forked ranks inherit it
from processes import ForkLauncher
from quiet import QUIET
from torch import nn

from lt_core import Callback, LightningModule, Trainer
from lt_interface.errors import CheckpointError, MisconfigurationException

BATCHES = [torch.full((2, 4), float(i)) for i in range(3)]


class Net(LightningModule):
    """Module of two layers, the first frozen where the fit begins."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.second(self.first(batch)).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.second(self.first(batch)).mean())

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=0.01, momentum=0.9)


class Unfreezes(Callback):
    """Callback that freezes the first layer, and hands it to the optimizer in the second epoch."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.first.requires_grad_(trainer.current_epoch > 0)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            pl_module.first.requires_grad_(True)
            trainer.optimizers[0].add_param_group({"params": list(pl_module.first.parameters()), "lr": 0.001})


class Exchanges(Callback):
    """Callback that takes another kind of optimizer in the second epoch."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        trainer.optimizers = [torch.optim.Adam(pl_module.parameters(), lr=0.01)]


def trainer(launched: bool, **flags: Any) -> Trainer:
    """Return a quiet trainer of two epochs."""
    launcher = ForkLauncher() if launched else None
    return Trainer(**{**QUIET, "max_epochs": 2, "num_sanity_val_steps": 0, "launcher": launcher, **flags})


def test_groups_that_were_added_in_the_rank_come_back() -> None:
    """An optimizer that got a group in the fit has both groups here, each with its options and its states."""
    found = []
    for launched in (False, True):
        run, module = trainer(launched, callbacks=[Unfreezes()]), Net()
        run.fit(module, BATCHES, BATCHES)
        found.append([run.optimizers[0].state_dict(), module.state_dict()])
    assert len(found[1][0]["param_groups"]) == 2
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_optimizers_that_the_module_does_not_make_are_never_taken_for_the_ranks(tmp_path: Path) -> None:
    """Where the rank's optimizer was of another kind, each question for it is an error, and none is saved."""
    run = trainer(True, callbacks=[Exchanges()])
    run.fit(Net(), BATCHES, BATCHES)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="the same kind of optimizer"):
            _ = run.optimizers
    with pytest.raises(CheckpointError, match="the same kind of optimizer"):
        run.save_checkpoint(tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked_before", [True, False])
def test_evaluation_leaves_the_optimizers_of_the_fit(tmp_path: Path, asked_before: bool) -> None:
    """After a fit and a validation elsewhere the fit's optimizers are there, and a checkpoint resumes with them."""
    run, module = trainer(True), Net()
    run.fit(module, BATCHES, BATCHES)
    if asked_before:
        assert run.optimizers
    run.validate(module, BATCHES, verbose=False)
    run.validate(module, BATCHES, verbose=False)
    assert len(run.optimizers[0].state) == 4
    run.save_checkpoint(tmp_path / "a.ckpt")
    here, there = trainer(False, max_epochs=3), trainer(False, max_epochs=3)
    resumed, straight = Net(), Net()
    here.fit(resumed, BATCHES, BATCHES, ckpt_path=tmp_path / "a.ckpt")
    there.fit(straight, BATCHES, BATCHES)
    assert torch.equal(resumed.first.weight, straight.first.weight)


def test_a_checkpoint_can_be_saved_after_an_evaluation_elsewhere(tmp_path: Path) -> None:
    """A launched validation attaches its module as one in this process does."""
    run = trainer(True)
    run.validate(Net(), BATCHES, verbose=False)
    assert run.optimizers == []
    run.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(Net.load_from_checkpoint(tmp_path / "a.ckpt").first.weight, Net().first.weight)


class Partial(Net):
    """Module whose state leaves its first layer out, as adapters leave out the large model that they sit on."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if not name.startswith("first")}


def test_weights_that_a_state_leaves_out_come_back() -> None:
    """A state_dict that leaves out layers costs neither the fit nor what it trained in them."""
    modules = [Partial(), Partial()]
    for module, launched in zip(modules, (False, True), strict=True):
        trainer(launched).fit(module, BATCHES, BATCHES)
    for ours, theirs in zip(modules[1].parameters(), modules[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)


class Grows(Net):
    """Module that gets a layer in setup."""

    def setup(self, stage: str) -> None:
        self.third = nn.Linear(1, 1)


def test_layers_that_are_not_here_cost_the_rest_of_nothing() -> None:
    """Weights of layers that only the rank has are warned of by name, and all else comes back."""
    run, module = trainer(True), Grows()
    with pytest.warns(UserWarning, match=r"did not come back: third\.weight, third\.bias\. Make them in __init__"):
        run.fit(module, BATCHES, BATCHES)
    expected = Net()
    trainer(False).fit(expected, BATCHES, BATCHES)
    assert torch.equal(module.first.weight, expected.first.weight)
    assert run.global_step == 6


class Opaque(Net):
    """Module whose predictions hold a function, on their second level."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return {"why": lambda: batch}


class Keeps(Callback):
    """Callback whose state is a function."""

    def state_dict(self) -> dict[str, Any]:
        return {"best": lambda: 0}


@pytest.mark.parametrize("call", ["predict", "validate"])
def test_what_cannot_come_back_is_named(call: str) -> None:
    """A value that pickle refuses on the way back is one error with the path to it."""
    run = trainer(True, callbacks=[Keeps()] if call == "validate" else [])
    path = r"predict_step, what it returned\[0\]\['why'\]" if call == "predict" else r"callbacks\['.*Keeps'\]\['best'\]"
    with pytest.raises(
        MisconfigurationException, match=rf"Trainer\.{call}, from its ranks: {path}: what goes to other"
    ):
        getattr(run, call)(Opaque(), BATCHES)
