"""What configure_optimizers may return, each in every spelling."""

from __future__ import annotations

import weakref
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from quiet import QUIET, Noting
from torch.optim import LBFGS, SGD
from torch.optim.lr_scheduler import ChainedScheduler, ExponentialLR, ReduceLROnPlateau, SequentialLR, StepLR

from lt_core import Trainer
from lt_interface import MisconfigurationException

Result = namedtuple("Result", "optimizers schedulers")
BATCHES = [torch.ones(2, 1)] * 2


class Wrapped:
    """Optimizer that wraps another and is of no class of torch's."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.steps = inner, 0

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        return self.inner.step(closure)


class Counting:
    """Scheduler of the user's own."""

    def __init__(self) -> None:
        self.count = 0

    def step(self) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Formed(Noting):
    """Module that returns what a test wants."""

    def __init__(self, form: Any, manual: bool = False) -> None:
        super().__init__()
        self.form, self.automatic_optimization = form, not manual

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if not self.automatic_optimization:
            self.manual_backward(loss)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=1.0)
        return self.form(optimizer, StepLR(optimizer, 1, 0.1))


def fitted(form: Any, manual: bool = False, kind: type[Formed] = Formed) -> Trainer:
    trainer = Trainer(**{**QUIET, "max_epochs": 2, "limit_val_batches": 0})
    trainer.fit(kind(form, manual), BATCHES)
    return trainer


def plateau(optimizer: Any) -> Any:
    return ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=1e9, threshold_mode="abs")


FORMS: dict[str, tuple[Any, float]] = {
    "optimizer": (lambda o, s: o, 1.0),
    "list": (lambda o, s: [o], 1.0),
    "tuple": (lambda o, s: (o,), 1.0),
    "lists": (lambda o, s: ([o], [s]), 0.01),
    "list of lists": (lambda o, s: [[o], [s]], 0.01),
    "tuples": (lambda o, s: ((o,), (s,)), 0.01),
    "named tuple": (lambda o, s: Result([o], [s]), 0.01),
    "no scheduler": (lambda o, s: ([o], []), 1.0),
    "None for schedulers": (lambda o, s: ([o], None), 1.0),
    "list of None": (lambda o, s: ([o], [None]), 1.0),
    "one scheduler": (lambda o, s: ([o], s), 0.01),
    "one dict": (lambda o, s: ([o], {"scheduler": s}), 0.01),
    "one dict in a list": (lambda o, s: [[o], {"scheduler": s}], 0.01),
    "one dict beside a tuple": (lambda o, s: ((o,), {"scheduler": s, "interval": "step"}), 0.0001),
    "dicts": (lambda o, s: ([o], [{"scheduler": s, "frequency": 2}]), 0.1),
    "dict and scheduler": (lambda o, s: ([o], [{"scheduler": s}, ExponentialLR(o, 1.0)]), 0.01),
    "dict": (lambda o, s: {"optimizer": o, "lr_scheduler": s}, 0.01),
    "dict of dict": (lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s}}, 0.01),
    "dict alone": (lambda o, s: {"optimizer": o}, 1.0),
    "dict of None": (lambda o, s: {"optimizer": o, "lr_scheduler": None}, 1.0),
    "other mapping": (lambda o, s: OrderedDict(optimizer=o, lr_scheduler=s), 0.01),
    "list of dicts": (lambda o, s: [{"optimizer": o, "lr_scheduler": {"scheduler": s}}], 0.01),
    "tuple of dicts": (lambda o, s: ({"optimizer": o, "lr_scheduler": s},), 0.01),
    "plateau": (lambda o, s: {"optimizer": o, "lr_scheduler": plateau(o), "monitor": "loss"}, 0.1),
    "plateau in one dict": (lambda o, s: ([o], {"scheduler": plateau(o), "monitor": "loss"}), 0.1),
    "sequence": (lambda o, s: ([o], SequentialLR(o, [s, ExponentialLR(o, 0.5)], [9])), 0.01),
    "chain": (lambda o, s: ([o], ChainedScheduler([s])), 0.01),
    "wrapper": (lambda o, s: Wrapped(o), 1.0),
    "list of wrappers": (lambda o, s: [Wrapped(o)], 1.0),
    "wrapper and scheduler": (lambda o, s: ([Wrapped(o)], [s]), 0.01),
    "dict of wrapper": (lambda o, s: {"optimizer": Wrapped(o), "lr_scheduler": s}, 0.01),
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_trains_and_schedules(name: str) -> None:
    """Each form gives one optimizer and the schedulers that are in it, stepped as they ask."""
    form, rate = FORMS[name]
    trainer = fitted(form)
    assert trainer.global_step == 4
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate)


@pytest.mark.parametrize("nothing", [None, [], (), ([], [])])
def test_nothing_is_a_fit_without_optimizer(nothing: Any) -> None:
    """None, an empty collection and empty lists run the steps without an optimizer; the first three warn."""
    if nothing == ([], []):
        assert fitted(lambda o, s: nothing).optimizers == []
        return
    with pytest.warns(UserWarning, match=r"returned .*: this fit will run with no optimizer"):
        assert fitted(lambda o, s: nothing).optimizers == []


def test_a_wrapper_is_stepped_by_hand_and_by_closure() -> None:
    """An optimizer of no class of torch's is stepped itself, in manual optimization too, and keeps its name."""
    trainer = fitted(lambda o, s: Wrapped(o))
    assert trainer.optimizers[0].steps == 4

    class ByHand(Formed):
        def on_train_batch_end(self, *_: Any) -> None:
            handle = self.optimizers()
            assert isinstance(handle, Wrapped)
            handle.step()
            handle.zero_grad()

    assert fitted(lambda o, s: Wrapped(o), True, ByHand).optimizers[0].steps == 4


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize(
    ("form", "rule"),
    [
        (lambda o, s: (o, s), "unknown form"),
        (lambda o, s: [o, s], "unknown form"),
        (lambda o, s: ([o], [s], 1), "unknown form"),
        (lambda o, s: "sgd", "unknown form"),
        (lambda o, s: SGD, "unknown form"),
        (lambda o, s: {"lr_scheduler": s}, 'must have the key "optimizer"'),
        (lambda o, s: ({"optimizer": o}, {"scheduler": s}), 'must have the key "optimizer"'),
        (lambda o, s: {"optimizer": [o]}, "every optimizer must be"),
        (lambda o, s: ([{"optimizer": o}], [s]), "every optimizer must be"),
        (lambda o, s: ([o], [[s]]), "(must have a step method|does not know how to step)"),
        (lambda o, s: ([o], "x"), "(must have a step method|does not know how to step)"),
        (lambda o, s: {"optimizer": o, "lr_scheduler": [s]}, "(must have a step method|does not know how to step)"),
        (lambda o, s: ([o], {"scheduler": None}), "(must have a step method|does not know how to step)"),
        (lambda o, s: ([o], {"optimizer": o}), 'must have the key "scheduler"'),
        (lambda o, s: ([SGD([torch.ones(1)], 0.1)], [s]), "a scheduler's optimizer must be among"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*no optimizer holds")
def test_other_forms_are_refused(form: Any, rule: str, manual: bool) -> None:
    """Every other form is one error that lists the forms, under manual optimization too."""
    with pytest.raises(MisconfigurationException, match=f"configure_optimizers: .*{rule}"):
        fitted(form, manual)


def test_a_scheduler_of_ones_own_is_stepped_by_hand() -> None:
    """A scheduler that is none of torch's is taken under manual optimization, or with lr_scheduler_step."""
    with pytest.raises(MisconfigurationException, match="Override lr_scheduler_step"):
        fitted(lambda o, s: ([o], [Counting()]))
    assert fitted(lambda o, s: ([o], [Counting()]), True).lr_scheduler_configs[0].scheduler.count == 0

    class Stepping(Formed):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            scheduler.step()

    assert fitted(lambda o, s: ([o], [Counting()]), kind=Stepping).lr_scheduler_configs[0].scheduler.count == 2


def test_a_windows_batches_are_free_after_its_step() -> None:
    """An optimizer with a closure over several batches holds none of them once it stepped."""
    alive: list[list[int]] = []
    seen: list[weakref.ref[Any]] = []

    class Watched(Formed):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            alive.append([i for i, ref in enumerate(seen) if ref() is not None])
            seen.append(weakref.ref(batch))

    def batches() -> Any:
        return (torch.ones(2, 1) for _ in range(6))

    trainer = Trainer(**{**QUIET, "max_epochs": 1, "accumulate_grad_batches": 2, "limit_val_batches": 0})
    trainer.fit(Watched(lambda optimizer, _: LBFGS(optimizer.param_groups[0]["params"])), batches)
    assert [2 * (i // 2) for i in range(6)] == [min(ids, default=i) for i, ids in enumerate(alive)]
