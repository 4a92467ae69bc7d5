"""Check that what users change while training takes effect at the next epoch, and handlers by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn

from lt_core import Callback, LightningModule, Trainer
from lt_interface import MisconfigurationException
from lt_interface.errors import ConfigError


def trainer(**flags: Any) -> Trainer:
    return Trainer(**{**QUIET, "num_sanity_val_steps": 0, "max_epochs": 2, **flags})


def batches(n: int) -> list[Tensor]:
    return [torch.ones(1, 1)] * n


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.layer.weight)
        self.steps: list[int] = []
        self.events: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.events.append("train")
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.events.append("val")

    def on_train_epoch_end(self) -> None:
        self.steps.append(self.global_step)
        self.events.append("|")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.125)


def fit(change: Any, event: str = "train_epoch_end", n: int = 4, net: Net | None = None, **flags: Any) -> Net:
    """Train with a change that is made once, in the first occurrence of an event."""
    net, run = net or Net(), trainer(**flags)
    run.on(event, once=1)(change)
    run.fit(net, batches(n), batches(1))
    return net


class Counts(Callback):
    def __init__(self) -> None:
        self.starts = self.epochs = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.starts += 1

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.epochs += 1


def test_callbacks_may_come_and_go() -> None:
    """A callback that is added hears of the next epoch from its start; one that is removed hears no more."""
    added, removed = Counts(), Counts()

    def change(trainer: Any) -> None:
        trainer.callbacks.append(added)
        trainer.callbacks.remove(removed)

    fit(change, callbacks=[removed])
    assert (added.epochs, added.starts) == (removed.epochs, removed.starts) == (1, 4)


def test_a_new_list_of_callbacks() -> None:
    """Assigning trainer.callbacks is as good as changing the list."""
    added = Counts()
    fit(lambda trainer: setattr(trainer, "callbacks", [added]))
    assert added.starts == 4


def test_callbacks_added_in_on_fit_start_hear_of_everything_after() -> None:
    """A callback may add another one before training begins."""
    added = Counts()
    fit(lambda trainer: trainer.callbacks.append(added), "fit_start")
    assert (added.epochs, added.starts) == (2, 8)


@pytest.mark.parametrize(("event", "steps"), [("train_epoch_end", [4, 6]), ("train_epoch_start", [2, 4])])
def test_accumulation(event: str, steps: list[int]) -> None:
    """accumulate_grad_batches, also when set in on_train_epoch_start, holds for the epoch that begins."""
    net = fit(lambda trainer: setattr(trainer, "accumulate_grad_batches", 2), event)
    assert net.steps == steps


def test_clipping() -> None:
    """gradient_clip_val bounds the steps from the next epoch on: each gradient is 1, or 0.5 when clipped."""
    net = fit(lambda trainer: setattr(trainer, "gradient_clip_val", 0.5), n=2)
    assert net.layer.weight.item() == pytest.approx(1 - 0.125 * (2 + 2 * 0.5))


def test_optimizers() -> None:
    """trainer.optimizers may be exchanged; steps, self.optimizers() and hooks then use the new one."""
    seen: list[Any] = []

    class Looks(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            wrapped: Any = self.optimizers()
            assert wrapped.optimizer is optimizer
            seen.append(optimizer.param_groups[0]["lr"])

    def change(trainer: Any, pl_module: Any) -> None:
        trainer.optimizers = [torch.optim.SGD(pl_module.parameters(), lr=0.25)]

    net = fit(change, n=2, net=Looks())
    assert seen == [0.125, 0.125, 0.25, 0.25]
    assert net.layer.weight.item() == pytest.approx(1 - 2 * 0.125 - 2 * 0.25)


def test_optimizers_that_are_made_again() -> None:
    """What configure_optimizers returns when it is called again trains from there on, its schedulers with it."""

    class Unfreezes(Net):
        def __init__(self) -> None:
            super().__init__()
            self.late = nn.Parameter(torch.zeros(1), requires_grad=False)
            self.rates: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) + self.late.sum()

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.late.requires_grad_(True)
                self.trainer.strategy.setup_optimizers(self.trainer)
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.125)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    net = Unfreezes()
    run = trainer(max_epochs=3, limit_val_batches=0)
    run.fit(net, batches(4))
    assert net.rates == [0.125, 0.125, 0.0625]
    assert (net.late.item(), net.layer.weight.item()) == (-0.75, -0.25)
    with pytest.raises(MisconfigurationException, match="only inside fit"):
        run.renew_optimizers()


@pytest.mark.parametrize("append", [True, False])
def test_one_optimizer_stays_one(append: bool) -> None:
    """Several optimizers are refused under automatic optimization when they are set in a fit too."""

    def change(trainer: Any, pl_module: Any) -> None:
        second = torch.optim.SGD(pl_module.parameters(), lr=0.25)
        trainer.optimizers = [*trainer.optimizers, second]

    def grow(trainer: Any, pl_module: Any) -> None:
        trainer.optimizers.append(torch.optim.SGD(pl_module.parameters(), lr=0.25))

    with pytest.raises(
        ConfigError, match=r"trainer\.optimizers: automatic optimization takes one optimizer, here are 2"
    ):
        fit(grow if append else change)


def test_what_nothing_trains_after_a_change_is_warned_of() -> None:
    """Parameters that no optimizer holds, and schedulers of one that is gone, are warned of in mid-fit too."""
    from torch.optim.lr_scheduler import StepLR

    class Schedules(Net):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [StepLR(optimizer, 1)]

    def exchange(trainer: Any, pl_module: Any) -> None:
        trainer.optimizers = [torch.optim.Adam(pl_module.parameters())]

    def replace(trainer: Any, pl_module: Any) -> None:
        pl_module.layer = nn.Linear(1, 1)

    with pytest.warns(UserWarning, match="trainer.optimizers: a learning-rate scheduler still steps a SGD"):
        fit(exchange, net=Schedules())
    with pytest.warns(UserWarning, match="no optimizer holds these trainable parameters: layer.weight, layer.bias"):
        fit(replace)


def test_schedulers() -> None:
    """A scheduler added to trainer.lr_scheduler_configs steps from the next epoch on."""
    from torch.optim.lr_scheduler import StepLR

    from lt_core.optim.parse import SchedulerConfig

    def change(trainer: Any) -> None:
        scheduler = StepLR(trainer.optimizers[0], 1, 0.5)
        trainer.lr_scheduler_configs.append(SchedulerConfig(scheduler, interval="step"))

    net = fit(change, n=2)
    assert net.layer.weight.item() == pytest.approx(1 - 0.125 * (1 + 1 + 1 + 0.5))


@pytest.mark.parametrize(
    ("flag", "value", "second"),
    [
        ("limit_train_batches", 2, ["train", "train", "val", "|"]),
        ("limit_train_batches", 0.25, ["train", "val", "|"]),
        ("limit_val_batches", 0, ["train"] * 4 + ["|"]),
        ("limit_val_batches", 1, ["train"] * 4 + ["val", "|"]),
        ("val_check_interval", 2, ["train", "train", "val"] * 2 + ["|"]),
        ("val_check_interval", 0.25, ["train", "val"] * 4 + ["|"]),
        ("check_val_every_n_epoch", 3, ["train"] * 4 + ["|"]),
    ],
)
def test_limits_and_cadence(flag: str, value: Any, second: list[str]) -> None:
    """Limits and the cadence of validation hold from the next epoch on."""
    net = Net()
    run = trainer()
    run.on("train_epoch_end", once=1)(lambda trainer: setattr(trainer, flag, value))
    run.fit(net, batches(4), batches(2))
    events = [e for i, e in enumerate(net.events) if e != "val" or net.events[i - 1] != "val"]
    assert events == ["train", "train", "train", "train", "val", "|", *second]
    if flag == "limit_val_batches":
        assert net.events.count("val") == 2 + value
    if flag == "limit_train_batches":
        assert run.num_training_batches == (2 if value == 2 else 1)


def test_a_limit_that_is_raised_again() -> None:
    """A limit set low at the start and lifted later gives all batches."""
    net = fit(lambda trainer: setattr(trainer, "limit_train_batches", 1.0), limit_train_batches=1)
    assert net.events.count("train") == 5


@pytest.mark.parametrize(
    ("flag", "value", "trained"), [("max_epochs", 1, 4), ("max_steps", 3, 3), ("max_epochs", 3, 12)]
)
def test_max_epochs_and_max_steps_are_read_live(flag: str, value: int, trained: int) -> None:
    """A limit that is changed inside an epoch holds at once."""
    net = fit(lambda trainer: setattr(trainer, flag, value), "train_batch_end")
    assert net.events.count("train") == trained


def test_automatic_optimization() -> None:
    """A module may turn to manual optimization between two epochs."""

    class Turns(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.automatic_optimization:
                return super().training_step(batch, batch_idx)
            self.events.append("by hand")
            return None

        def on_train_epoch_end(self) -> None:
            super().on_train_epoch_end()
            self.automatic_optimization = False

    net = fit(lambda: None, n=2, net=Turns())
    assert net.events == ["train", "train", "val", "|", "by hand", "by hand", "val", "|"]
    assert net.steps == [2, 2]


def test_a_step_put_on_the_instance() -> None:
    """A training_step assigned to the module while training is used from the next epoch on."""

    def change(pl_module: Any) -> None:
        old = pl_module.training_step
        pl_module.training_step = lambda batch, batch_idx: old(batch, batch_idx) * 0

    net = fit(change, n=2)
    assert net.layer.weight.item() == pytest.approx(1 - 2 * 0.125)


def test_training_mode_of_parts_is_the_users() -> None:
    """A submodule put in evaluation mode stays so over validation."""
    net = Net()
    net.part = nn.Dropout()
    net.part.eval()
    fit(lambda: None, net=net)
    assert (net.training, net.layer.training, net.part.training) == (True, True, False)


# ------------------------------------------------------------------ handlers


def test_handlers_run_at_every_nth_occurrence_or_once() -> None:
    """every=3 calls at the 3rd, 6th, ... occurrence over epochs; once=2 only at the second."""
    run = trainer()
    seen: list[Any] = []

    @run.on("train_batch_end", every=3)
    def third(trainer: Any) -> None:
        seen.append(("third", trainer.global_step))

    @run.on("on_train_batch_end", once=2)
    def second(trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        seen.append(("second", batch_idx))

    @run.on("train_epoch_end")
    def bare() -> None:
        seen.append("epoch")

    run.fit(Net(), batches(4), batches(1))
    assert seen == [("second", 1), ("third", 3), "epoch", ("third", 6), "epoch"]


def test_handlers_take_arguments_by_name() -> None:
    """A handler may name just what it needs of the hook's arguments."""
    run, seen = trainer(max_epochs=1), []
    run.on("train_batch_end")(lambda batch_idx, outputs: seen.append((batch_idx, sorted(outputs))))
    run.on("exception")(lambda exception: seen.extend(exception.args))
    run.fit(Net(), batches(2), batches(1))
    assert seen == [(0, ["loss"]), (1, ["loss"])]


def test_handlers_may_be_attached_and_detached_while_training() -> None:
    """What is attached or detached inside an epoch counts from the next epoch on."""
    run, seen = trainer(max_epochs=3), []

    @run.on("train_batch_start")
    def early(trainer: Any) -> None:
        seen.append(("early", trainer.current_epoch))

    def late(trainer: Any) -> None:
        seen.append(("late", trainer.current_epoch))

    @run.on("train_epoch_end", once=1)
    def change() -> None:
        run.off(early)
        run.on("train_batch_start")(late)

    run.fit(Net(), batches(1), batches(1))
    assert seen == [("early", 0), ("late", 1), ("late", 2)]


def test_handlers_see_what_callbacks_did() -> None:
    """Handlers run after the callbacks and before the module."""
    order: list[str] = []

    class First(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            order.append("callback")

    class Last(Net):
        def on_train_start(self) -> None:
            order.append("module")

    run = trainer(max_epochs=1, callbacks=[First()])
    run.on("train_start")(lambda: order.append("handler"))
    run.fit(Last(), batches(1), batches(1))
    assert order == ["callback", "handler", "module"]


@pytest.mark.parametrize(
    ("event", "options", "function", "message"),
    [
        ("train_batch_ends", {}, lambda: None, 'no event of that name. Did you mean "train_batch_end"?'),
        ("xyz", {}, lambda: None, "Events: "),
        ("train_start", {"every": 0}, lambda: None, "every must be a whole number of at least 1. Got 0"),
        ("train_start", {"once": 0}, lambda: None, "once must be a whole number of at least 1. Got 0"),
        ("train_start", {}, lambda a, b, c: None, "Take any leading part of (trainer, pl_module)."),
    ],
)
def test_handlers_that_can_not_work_are_refused(
    event: str, options: dict[str, Any], function: Any, message: str
) -> None:
    """Unknown events, odd counts and functions that cannot be called are errors where they are attached."""
    with pytest.raises(ConfigError) as caught:
        trainer().on(event, **options)(function)
    assert message in str(caught.value)


def _takes_less(trainer):
    """Handler of a shorter form, which is fed by its parameters' names."""


def test_a_trainer_with_a_handler_of_a_shorter_form_can_be_pickled():
    """A trainer whose handler takes fewer arguments travels through pickle as before."""
    import pickle

    from lt_core import Trainer

    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.on("train_batch_end")(_takes_less)
    assert pickle.loads(pickle.dumps(trainer))._handlers[0].function is _takes_less
