"""Check when fit ends: limits, requests to stop, time, and a second fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn

from lt_core import Callback, LightningModule, Trainer


def trainer(**flags: Any) -> Trainer:
    return Trainer(**{**QUIET, "num_sanity_val_steps": 0, **flags})


def batches(n: int) -> list[Tensor]:
    return [torch.ones(1, 1)] * n


class Net(LightningModule):
    """Module that notes the batches as (epoch, index), and what else happened in between."""

    def __init__(self, at: Callable[[Any], bool] = lambda net: False) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.at = at
        self.events: list[Any] = []

    @property
    def batches(self) -> list[Any]:
        return [e for e in self.events if isinstance(e, tuple)]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.events.append((self.current_epoch, batch_idx))
        if self.at(self):
            self.trainer.should_stop = True
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.events.append("validation")

    def on_train_epoch_end(self) -> None:
        self.events.append("epoch end")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(net: Net, n: int = 3, **flags: Any) -> Trainer:
    run = trainer(**flags)
    run.fit(net, batches(n), batches(1))
    return run


@pytest.mark.parametrize(
    ("flags", "epochs", "steps", "total"),
    [
        ({"max_epochs": 2}, 2, 6, 6),
        ({"max_steps": 4}, 1, 4, 4),
        ({"max_epochs": 1, "max_steps": 4}, 1, 3, 3),
        ({"max_epochs": 5, "max_steps": 3}, 1, 3, 3),
        ({"max_epochs": -1, "max_steps": 7}, 2, 7, 7),
        ({"max_steps": 3, "accumulate_grad_batches": 2}, 1, 3, 5),
        ({"max_steps": 0}, 0, 0, 0),
        ({"max_epochs": 0}, 0, 0, 0),
        ({"max_steps": 5, "min_epochs": 4}, 1, 5, 5),
    ],
)
def test_epochs_and_steps_end_a_fit(flags: dict[str, Any], epochs: int, steps: int, total: int) -> None:
    """Whichever of max_epochs and max_steps comes first ends it; an epoch counts once all its batches are done."""
    net = Net()
    run = fit(net, **flags)
    assert (run.current_epoch, run.global_step, len(net.batches)) == (epochs, steps, total)
    assert str(run.state.status) == "finished"
    assert not run.interrupted


def test_a_stop_inside_an_epoch_first_runs_the_validation() -> None:
    """should_stop at a batch: validation, then the epoch's end, and no further batch."""
    net = Net(at=lambda net: len(net.batches) == 2)
    run = fit(net, max_epochs=3)
    assert net.events == [(0, 0), (0, 1), "validation", "epoch end"]
    assert (run.current_epoch, run.global_step) == (0, 2)


def test_max_steps_inside_an_epoch_forces_no_validation() -> None:
    """Unlike a stop, the end by max_steps validates only where it is due."""
    net = Net()
    fit(net, max_steps=2)
    assert net.events == [(0, 0), (0, 1), "epoch end"]


@pytest.mark.parametrize(("at", "stopped"), [(1, 3), (3, 3), (4, 6), (7, 8)])
def test_a_stop_waits_for_an_open_accumulation_window(at: int, stopped: int) -> None:
    """Gradients that were gathered are stepped with before the epoch is left, a short last window included."""
    net = Net(at=lambda net: len(net.batches) == at)
    run = fit(net, n=8, max_epochs=2, accumulate_grad_batches=3)
    assert len(net.batches) == stopped
    assert net.events[-2:] == ["validation", "epoch end"]
    assert net.events.count("validation") == 1
    assert run.global_step == -(-stopped // 3)


@pytest.mark.parametrize(
    ("flags", "total"),
    [
        ({"min_epochs": 2}, 6),
        ({"min_steps": 4}, 4),
        ({"min_steps": 2}, 3),
        ({"min_epochs": 2, "min_steps": 2}, 6),
        ({"min_epochs": 1, "min_steps": 5}, 5),
        ({"min_epochs": 9, "max_epochs": -1, "max_steps": 8}, 8),
        ({"min_epochs": 0, "min_steps": 2}, 2),
        ({"min_steps": 3, "accumulate_grad_batches": 2}, 5),
        ({}, 1),
    ],
)
def test_a_stop_waits_for_min_epochs_and_min_steps(flags: dict[str, Any], total: int) -> None:
    """should_stop in the first batch takes effect once both minima are reached, never beyond a maximum."""
    net = Net(at=lambda net: len(net.batches) == 1)
    fit(net, **{"max_epochs": 5, **flags})
    assert len(net.batches) == total


def test_a_stop_before_the_first_epoch_trains_nothing() -> None:
    """should_stop in on_train_start ends fit before any batch."""
    net, run = Net(), trainer(max_epochs=2)
    run.on("train_start")(lambda trainer: setattr(trainer, "should_stop", True))
    run.fit(net, batches(3), batches(1))
    assert net.events == []


@pytest.mark.parametrize(
    ("event", "events"),
    [
        ("train_epoch_start", [(0, 0), "validation", "epoch end"]),
        ("train_batch_start", [(0, 0), "validation", "epoch end"]),
        ("train_batch_end", [(0, 0), "validation", "epoch end"]),
        ("validation_end", [(0, 0), (0, 1), "validation", "epoch end"]),
        ("train_epoch_end", [(0, 0), (0, 1), "validation", "epoch end"]),
    ],
)
def test_a_stop_in_any_hook(event: str, events: list[Any]) -> None:
    """Wherever should_stop is set, validation runs once, the epoch ends, and nothing follows."""
    net, run = Net(), trainer(max_epochs=2)
    run.on(event)(lambda trainer: setattr(trainer, "should_stop", True))
    run.fit(net, batches(2), batches(1))
    assert net.events == events


def test_max_time_ends_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """max_time stops training at the first batch that ends after it, with the due validation."""
    clock = [50.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    class Slow(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            clock[0] += 1.0
            return super().training_step(batch, batch_idx)

    net = Slow()
    run = fit(net, n=4, max_time={"seconds": 5.5})
    assert len(net.batches) == 6
    assert net.events[-2:] == ["validation", "epoch end"]
    assert run.max_epochs == -1


class Skipping(Net):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 1 else None


def test_minus_one_from_on_train_batch_start_skips_the_rest_of_the_epoch() -> None:
    """The epoch ends without further batches and without validation; the next one begins."""
    net = Skipping()
    run = fit(net, max_epochs=2)
    assert net.events == [(0, 0), "epoch end", (1, 0), "epoch end"]
    assert (run.global_step, run.current_epoch) == (2, 2)


def test_a_callbacks_minus_one_means_nothing() -> None:
    """Only the module's return value ends an epoch."""

    class Says(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> Any:
            return -1

    net = Net()
    fit(net, max_epochs=1, callbacks=[Says()])
    assert len(net.batches) == 3


def test_a_second_fit_goes_on_where_the_first_ended() -> None:
    """Counters go on over fits: nothing happens at the same limit, and a raised one is filled up."""
    net, run = Net(), trainer(max_epochs=2)
    run.fit(net, batches(2), batches(1))
    before = list(net.events)
    with pytest.warns(UserWarning, match="max_epochs=2 before"):
        run.fit(net, batches(2), batches(1))
    assert net.events == before
    run.max_epochs = 3
    run.fit(net, batches(2), batches(1))
    assert net.events == [*before, (2, 0), (2, 1), "validation", "epoch end"]
    assert (run.current_epoch, run.global_step) == (3, 6)


def test_a_second_fit_forgets_the_first_ones_stop() -> None:
    """should_stop is False again when fit begins, which goes on with the next batch of the epoch that was left."""
    net = Net(at=lambda net: len(net.batches) == 1)
    run = fit(net, max_epochs=2)
    assert run.should_stop
    run.fit(net, batches(3), batches(1))
    assert net.batches == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert not run.should_stop


def test_fit_after_a_fit_that_failed_begins_a_new_epoch() -> None:
    """An error inside an epoch leaves counters of completed things; the next fit starts that epoch anew."""

    class Fails(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if len(self.batches) == 3:
                self.events.append("error")
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    net, run = Fails(), trainer(max_epochs=2)
    with pytest.raises(RuntimeError, match="broken"):
        run.fit(net, batches(2), batches(1))
    assert run.interrupted
    net.events.clear()
    run.fit(net, batches(2), batches(1))
    assert net.batches == [(1, 0), (1, 1)]
    assert (run.current_epoch, run.global_step) == (2, 5)
    assert not run.interrupted


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_errors_of_the_users_code_are_raised_as_they_are(error: type[BaseException]) -> None:
    """Whatever a step raises comes out of fit, after on_exception and teardown."""

    class Fails(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise error("mine")

        def teardown(self, stage: str) -> None:
            self.events.append(stage)

    net, run = Fails(), trainer(max_epochs=1)
    with pytest.raises(error, match="mine"):
        run.fit(net, batches(2), batches(1))
    assert net.events == ["fit"]
    assert run.interrupted


def test_a_model_trained_twice_by_new_trainers_starts_at_zero() -> None:
    """A new trainer has its own counters; the weights are the model's."""
    net = Net()
    fit(net, max_epochs=1)
    run = fit(net, max_epochs=1)
    assert net.batches == [(0, 0), (0, 1), (0, 2)] * 2
    assert run.global_step == 3
