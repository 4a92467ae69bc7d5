"""Check calls of a trainer that a hook of another call makes: with the same trainer, module or neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from logged import logged
from quiet import QUIET, Noting

from lt_core import Callback, Trainer
from lt_interface import MisconfigurationException

BATCHES = [torch.full((2, 1), float(i)) for i in range(3)]


def trainer(**flags: Any) -> Trainer:
    """Return a quiet trainer of two epochs that logs each step."""
    return Trainer(**{**QUIET, "max_epochs": 2, "num_sanity_val_steps": 0, "log_every_n_steps": 1, **flags})


class Calls(Callback):
    """Callback that makes a call at the end of each training epoch."""

    def __init__(self, call: Callable[[Any, Any], Any]) -> None:
        self.call = call

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.call(trainer, pl_module)


def net() -> Noting:
    """Return the module that each test trains, the same each time."""
    torch.manual_seed(1)
    return Noting()


@pytest.mark.parametrize("name", ["fit", "validate", "predict"])
def test_a_trainer_makes_one_call_at_a_time(name: str) -> None:
    """A call of the trainer inside its own fit is refused, and the trainer can be used afterwards."""
    busy = trainer(callbacks=[Calls(lambda trainer, module: getattr(trainer, name)(module, BATCHES))])
    with pytest.raises(MisconfigurationException, match=rf"Trainer.{name}: .* Got a call inside fit\."):
        busy.fit(net(), BATCHES, BATCHES)
    busy.callbacks.clear()
    busy.fit(net(), BATCHES, BATCHES)
    assert busy.global_step == 9
    assert not busy.interrupted


@pytest.mark.parametrize("same_module", [True, False])
def test_another_trainer_in_a_hook_disturbs_nothing(same_module: bool) -> None:
    """What the outer fit logs and trains is what it is without, also where a hook validates the module it trains."""
    other = trainer()

    def measures(outer: Trainer, module: Any) -> None:
        measured = module if same_module else net()
        other.validate(measured, BATCHES, verbose=False)
        assert module.trainer is outer
        assert measured.trainer is (outer if same_module else other)
        module.log("end", 1.0)

    plain, outer = trainer(), trainer(callbacks=[Calls(measures)])
    expected, found = net(), net()
    plain.fit(expected, BATCHES, BATCHES)
    outer.fit(found, BATCHES, BATCHES)
    assert torch.equal(found.layer.weight, expected.layer.weight)
    assert logged(outer)["sum"] == logged(plain)["sum"] == [0.0, 2.0, 4.0] * 2
    assert logged(outer)["end"] == [1.0, 1.0]
    assert outer.callback_metrics["val"] == plain.callback_metrics["val"]
    assert found.training
