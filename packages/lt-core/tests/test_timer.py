"""The run's time budget."""

from datetime import timedelta
from types import SimpleNamespace

import pytest

from lt_core.callbacks import Timer
from lt_core.callbacks import timer as timer_module
from lt_core.state.agreement import SharedAlarm
from lt_interface.errors import ConfigError


class _Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(timer_module, "time", clock)
    return clock


def _trainer():
    trainer = SimpleNamespace(should_stop=False, world_size=1)
    trainer.request_stop = lambda by, why: setattr(trainer, "should_stop", True)
    return trainer


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        ("00:00:00:05", 5),
        ("01:02:03:04", 93784),
        (timedelta(minutes=1), 60),
        ({"hours": 1, "minutes": 1}, 3660),
        (None, None),
    ],
)
def test_durations_are_read(duration, seconds):
    """Text, timedelta and dict all say the same."""
    assert Timer(duration).time_remaining() == seconds


@pytest.mark.parametrize("duration", ["5:00", "1h", 12, {"minute": 1}, "00:00:00:05x"])
def test_an_unreadable_duration_is_refused(duration):
    """What is no duration is an error that shows the right form."""
    with pytest.raises(ConfigError, match="Timer\\(duration="):
        Timer(duration)


def test_an_unknown_interval_suggests_the_nearest():
    """The interval is step or epoch."""
    with pytest.raises(ConfigError, match='Did you mean "step"'):
        Timer(interval="steps")


def test_training_stops_when_the_time_is_used_up(clock):
    """The batch at which the budget is used up is the one that stops."""
    timer, trainer = Timer({"seconds": 10}), _trainer()
    timer.on_fit_start(trainer, None)
    timer.on_train_start(trainer, None)
    clock.now += 9
    timer.on_train_batch_end(trainer, None, None, None, 0)
    timer.on_train_epoch_end(trainer, None)
    assert not trainer.should_stop
    assert timer.time_remaining() == 1
    clock.now += 1
    timer.on_train_epoch_end(trainer, None)
    assert not trainer.should_stop
    timer.on_train_batch_end(trainer, None, None, None, 1)
    assert trainer.should_stop


def test_the_epoch_interval_looks_only_at_epochs(clock):
    """By the epoch, batches do not stop."""
    timer, trainer = Timer({"seconds": 10}, interval="epoch"), _trainer()
    timer.on_train_start(trainer, None)
    clock.now += 11
    timer.on_train_batch_end(trainer, None, None, None, 0)
    assert not trainer.should_stop
    timer.on_train_epoch_end(trainer, None)
    assert trainer.should_stop


def test_a_resumed_run_goes_on_with_the_rest(clock):
    """What was used before counts, and a budget that is gone stops before the first batch."""
    first, trainer = Timer({"seconds": 10}), _trainer()
    first.on_train_start(trainer, None)
    clock.now += 10
    second = Timer({"seconds": 15})
    second.load_state_dict(first.state_dict())
    assert second.time_elapsed() == 10
    second.on_fit_start(trainer, None)
    assert not trainer.should_stop
    third = Timer({"seconds": 10})
    third.load_state_dict(first.state_dict())
    third.on_fit_start(trainer, None)
    assert trainer.should_stop


def test_stages_have_clocks_of_their_own(clock):
    """Time of validation and test is known apart, and stands still when they are over."""
    timer, trainer = Timer(), _trainer()
    assert timer.start_time() is None
    timer.on_train_start(trainer, None)
    timer.on_validation_start(trainer, None)
    clock.now += 3
    timer.on_validation_end(trainer, None)
    clock.now += 2
    timer.on_train_end(trainer, None)
    clock.now += 50
    assert timer.time_elapsed("validate") == 3
    assert timer.time_elapsed() == timer.end_time() - timer.start_time() == 5
    assert timer.time_remaining() is None


def test_ranks_ring_together_and_ask_rarely():
    """With several ranks rank 0's clock decides, and is asked about once a second, not at each batch."""
    now, asked = [0.0], []

    def broadcast(value):
        asked.append(now[0])
        return value

    ranks = SimpleNamespace(broadcast_object=broadcast)
    trainer = SimpleNamespace(world_size=2, collectives=ranks)
    alarm = SharedAlarm(lambda: 10.0 - now[0], clock=lambda: now[0])
    rang = None
    for batch in range(2000):
        now[0] += 0.01
        if alarm.rings(trainer):
            rang = batch
            break
    assert rang in (999, 1000)  # a sum of hundredths is not exact
    assert len(asked) < 40
