"""Stopping when a metric no longer improves."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quiet import QUIET

from lt_core import Callback, LightningModule, Trainer
from lt_core.callbacks import EarlyStopping
from lt_core.callbacks.early_stopping import EarlyStoppingReason as Reason
from lt_interface import PlainCollectives
from lt_interface.errors import ConfigError, MisconfigurationException


def _trainer(**changes):
    values = {
        "callback_metrics": {},
        "logged_metrics": {},
        "epoch_metrics": frozenset(),
        "validated_in_epoch": False,
        "val_check_interval": 1.0,
        "check_val_every_n_epoch": 1,
        "enable_validation": True,
        "barebones": False,
        "state": SimpleNamespace(fn="fit"),
        "sanity_checking": False,
        "fast_dev_run": False,
        "is_global_zero": True,
        "global_rank": 0,
        "world_size": 1,
        "current_epoch": 0,
        "should_stop": False,
        "collectives": PlainCollectives(),
        "_run": None,
    }
    made = SimpleNamespace(**{**values, **changes})
    made.request_stop = lambda by, why: setattr(made, "should_stop", True)
    made.withdraw_stop = lambda by: setattr(made, "should_stop", False)
    return made


def _feed(callback, values, trainer=None):
    """Give one value an epoch; return the epoch at which the callback stopped, or None."""
    trainer = trainer or _trainer()
    for epoch, value in enumerate(values):
        trainer.current_epoch = epoch
        trainer.callback_metrics = {"loss": torch.as_tensor(value)}
        callback.on_validation_end(trainer, None)
        callback.on_train_epoch_end(trainer, None)
        if trainer.should_stop:
            return epoch
    return None


@pytest.mark.parametrize(
    ("losses", "patience", "stops_at"),
    [
        ([6, 5, 5, 5, 5, 5], 3, 4),
        ([6, 5, 4, 4, 3, 3], 1, 3),
        ([6, 5, 6, 5, 5, 5], 3, 4),
        ([3, 2, 1], 1, None),
        ([1, 2], 0, 1),
    ],
)
def test_patience_counts_looks_without_improvement(losses, patience, stops_at):
    """Training stops at the look that exhausts the patience."""
    callback = EarlyStopping("loss", patience=patience)
    assert _feed(callback, losses) == stops_at
    assert callback.stopped_epoch == (stops_at or 0)
    expected = Reason.NOT_STOPPED if stops_at is None else Reason.PATIENCE_EXHAUSTED
    assert callback.stopping_reason is expected


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(1, 4), st.floats(0, 10))
def test_both_modes_are_mirrors(values, patience, delta):
    """Maximising a metric stops where minimising its negative does."""
    down = _feed(EarlyStopping("loss", delta, patience), [torch.tensor(v) for v in values])
    up = _feed(EarlyStopping("loss", delta, patience, mode="max"), [torch.tensor(-v) for v in values])
    assert down == up


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30), st.integers(1, 4))
def test_it_stops_exactly_where_a_plain_count_says(values, patience):
    """The look that stops is the one at which a hand-written count reaches the patience."""
    best, wait, expected = math.inf, 0, None
    for i, value in enumerate(torch.tensor(values)):
        if value < best:
            best, wait = value, 0
        else:
            wait += 1
            if wait >= patience:
                expected = i
                break
    assert _feed(EarlyStopping("loss", patience=patience), list(torch.tensor(values))) == expected


def test_a_change_below_min_delta_is_no_improvement():
    """Only a change larger than min_delta sets the count back."""
    assert _feed(EarlyStopping("loss", min_delta=0.5, patience=1), [2.0, 1.6]) == 1
    assert _feed(EarlyStopping("loss", min_delta=0.5, patience=1), [2.0, 1.4]) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_stops_at_once(value):
    """NaN and infinity stop training, unless the check is off."""
    callback = EarlyStopping("loss", patience=9)
    assert _feed(callback, [1.0, value]) == 1
    assert callback.stopping_reason is Reason.NON_FINITE_METRIC
    assert "not finite" in callback.stopping_reason_message
    assert _feed(EarlyStopping("loss", patience=9, check_finite=False), [1.0, value]) is None


def test_a_goal_and_a_limit_stop_at_once():
    """Reaching the goal or passing the limit stops whatever the patience; the goal is asked first."""
    callback = EarlyStopping("loss", patience=9, stopping_threshold=0.5)
    assert _feed(callback, [1.0, 0.4]) == 1
    assert callback.stopping_reason is Reason.STOPPING_THRESHOLD
    callback = EarlyStopping("loss", patience=9, divergence_threshold=10.0)
    assert _feed(callback, [1.0, 11.0]) == 1
    assert callback.stopping_reason is Reason.DIVERGENCE_THRESHOLD
    callback = EarlyStopping("loss", patience=9, stopping_threshold=5.0, divergence_threshold=1.0)
    assert _feed(callback, [2.0]) == 0
    assert callback.stopping_reason is Reason.STOPPING_THRESHOLD


def test_a_missing_metric_lists_those_that_are_there():
    """The error names the keys that were logged and the nearest one."""
    trainer = _trainer(callback_metrics={"val_loss": torch.tensor(1.0), "acc": torch.tensor(0.5)})
    with pytest.raises(RuntimeError, match=r'Logged are: acc, val_loss. Did you mean "val_loss"\?') as caught:
        EarlyStopping("valloss").on_train_epoch_end(trainer, None)
    assert isinstance(caught.value, MisconfigurationException)
    with pytest.warns(UserWarning, match="Logged are: acc, val_loss"):
        EarlyStopping("valloss", strict=False).on_train_epoch_end(trainer, None)


@pytest.mark.parametrize(
    ("changes", "at_epoch_end"),
    [
        ({}, True),
        ({"val_check_interval": 0.5}, False),
        ({"check_val_every_n_epoch": 2}, False),
        ({"check_val_every_n_epoch": 2, "enable_validation": False}, True),
    ],
)
def test_the_place_follows_validation(changes, at_epoch_end):
    """It looks once where validation runs once an epoch or never, else after each validation."""
    trainer = _trainer(callback_metrics={"loss": torch.tensor(1.0)}, **changes)
    callback = EarlyStopping("loss")
    callback.on_validation_end(trainer, None)
    assert torch.isinf(callback.best_score) == at_epoch_end
    callback.on_train_epoch_end(trainer, None)
    assert callback.best_score == 1.0


@pytest.mark.parametrize(
    "changes", [{"sanity_checking": True}, {"fast_dev_run": 1}, {"state": SimpleNamespace(fn="validate")}]
)
def test_it_rests_outside_of_training(changes):
    """Sanity check, fast_dev_run and validate change nothing."""
    callback = EarlyStopping("loss", patience=0)
    assert _feed(callback, [1.0, 2.0], _trainer(**changes)) is None
    assert torch.isinf(callback.best_score)


def test_a_resumed_count_goes_on():
    """State moved to a new callback stops at the same look."""
    first = EarlyStopping("loss", patience=2)
    _feed(first, [1.0, 2.0])
    second = EarlyStopping("loss", patience=2)
    second.load_state_dict(first.state_dict())
    assert _feed(second, [2.0]) == 0
    assert second.wait_count == 2
    assert second.best_score == 1.0
    assert first.state_key == second.state_key != EarlyStopping("loss", mode="max").state_key


def test_another_ranks_stop_stops_this_one():
    """A value of rank 0 that is a reason to stop ends this rank too, whose own value is none."""
    ranks = SimpleNamespace(broadcast_object=lambda value: torch.tensor(float("nan")))
    assert _feed(EarlyStopping("loss", patience=9), [1.0], _trainer(collectives=ranks)) == 0


def test_every_rank_goes_by_the_first_ones_value():
    """Rank 0's value decides on every rank, also where a rank's own one still improves."""
    ranks = SimpleNamespace(broadcast_object=lambda value: torch.tensor(1.0))
    assert _feed(EarlyStopping("loss", patience=1), [3.0, 2.0, 1.0], _trainer(collectives=ranks)) == 1


def test_verbose_tells_improvements_and_the_stop(caplog):
    """Each improvement and the reason of the stop are reported on request."""
    with caplog.at_level("INFO", logger="lt_core"):
        _feed(EarlyStopping("loss", patience=1, verbose=True), [2.0, 1.0, 1.0])
    assert [r.message for r in caplog.records] == [
        "loss improved to 2.00000.",
        "loss improved by 1.00000 to 1.00000.",
        "loss did not improve in the last 1 looks; best was 1.00000. Training stops.",
    ]


def test_all_wrong_arguments_are_told_at_once():
    """Mode and patience are checked where the callback is made."""
    with pytest.raises(ConfigError, match="2 problems") as caught:
        EarlyStopping("loss", mode="mim", patience=-1)
    assert 'Did you mean "min"?' in str(caught.value)


class _Scores(LightningModule):
    """Module whose validation metric is a list's item by epoch."""

    def __init__(self, values):
        super().__init__()
        self.layer, self.values = torch.nn.Linear(1, 1), values

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log_dict({"a": self.values[self.current_epoch], "b": -self.values[self.current_epoch]})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def _fit(values, callbacks, **flags):
    trainer = Trainer(**QUIET, num_sanity_val_steps=0, max_epochs=len(values), callbacks=callbacks, **flags)
    net = _Scores(values)
    trainer.fit(net, [torch.ones(1, 1)] * 2, [torch.ones(1, 1)])
    return trainer, net


RECOVERS = [1.0, 2.0, 3.0, 0.5, 0.4, 0.3, 0.2, 0.1]


def test_a_stop_that_waits_is_taken_back_if_the_metric_improves():
    """Patience ran out before min_epochs, then the metric improved: training goes on."""
    stopping = EarlyStopping("a", patience=2)
    trainer, _ = _fit(RECOVERS, [stopping], min_epochs=5)
    assert (trainer.current_epoch, trainer.should_stop) == (8, False)
    assert (stopping.stopping_reason, stopping.stopped_epoch, stopping.stopping_reason_message) == (
        Reason.NOT_STOPPED,
        0,
        None,
    )


def test_a_stop_that_waits_stays_without_an_improvement():
    """It comes as soon as min_epochs allows."""
    trainer, _ = _fit([1.0, 2.0, 3.0, 1.5, 1.4, 1.3, 1.2, 1.1], [EarlyStopping("a", patience=2)], min_epochs=5)
    assert trainer.current_epoch == 5


@pytest.mark.parametrize("order", [1, -1])
def test_only_ones_own_stop_is_taken_back(order):
    """A second callback that asked for a stop still gets it, whichever comes first."""
    callbacks = [EarlyStopping("a", patience=2), EarlyStopping("b", patience=3)][::order]
    trainer, _ = _fit([1.0, 2.0, 3.0, 0.9, 1.0, 0.8, 0.7, 0.6, 0.5], [*callbacks], min_epochs=5)
    assert trainer.current_epoch < 9


def test_a_users_stop_is_not_taken_back():
    """should_stop = True stands, whatever a metric does."""

    class Stops(Callback):
        def on_validation_end(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                trainer.should_stop = True

    trainer, _ = _fit(RECOVERS, [EarlyStopping("a", patience=2), Stops()], min_epochs=5)
    assert trainer.current_epoch == 5


def test_a_user_may_take_back_every_stop():
    """should_stop = False forgets what callbacks asked for, too."""

    class Goes(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = False

    stopping = EarlyStopping("a", patience=1, check_on_train_epoch_end=False)
    trainer, _ = _fit([1.0, 2.0, 3.0], [stopping, Goes()], min_epochs=3)
    assert (trainer.current_epoch, trainer.should_stop) == (3, False)


def test_arguments_are_not_restored(tmp_path):
    """A run is resumed with the patience that its callback is given now."""
    trainer, net = _fit([1.0, 2.0, 3.0], [EarlyStopping("a", patience=5)])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    net.values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    stopping = EarlyStopping("a", patience=3)
    trainer = Trainer(**QUIET, num_sanity_val_steps=0, max_epochs=8, callbacks=[stopping])
    trainer.fit(net, [torch.ones(1, 1)] * 2, [torch.ones(1, 1)], ckpt_path=tmp_path / "a.ckpt")
    assert (stopping.patience, trainer.current_epoch) == (3, 4)
    assert "patience" not in stopping.state_dict()
