"""The arithmetic of progress: pace, what is left, durations."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_core.callbacks.progress.forecast import Forecast, Pace, batches_left, duration_text, taken_text


@given(st.floats(1e-4, 10), st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_a_steady_pace_is_learned_exactly(seconds, units):
    """Work of constant speed has that speed, however it is measured."""
    pace = Pace()
    for n in units:
        pace.add(n, n * seconds)
    assert pace.seconds == pytest.approx(seconds)


def test_a_new_pace_replaces_an_old_one():
    """After some memories' time the old pace no longer counts."""
    pace = Pace(memory=10)
    pace.add(100, 10)
    pace.add(100, 100)
    assert pace.seconds == pytest.approx(1.0, rel=0.05)


def test_without_work_there_is_no_pace():
    """Nothing done is nothing known."""
    pace = Pace()
    pace.add(0, 5)
    assert pace.seconds is None


def test_the_epoch_counts_batches_and_the_run_also_what_lies_between():
    """Validation of 10 s after each 10 batches doubles a pace of 1 s for the run, not for the epoch."""
    forecast = Forecast(now=0.0)
    forecast.away(done=10, now=10.0)
    forecast.back(now=20.0)
    forecast.new_epoch(now=20.0)
    forecast.batches(done=5, now=25.0)
    assert forecast.epoch_left(5) == pytest.approx(5)
    assert forecast.run_left(20) == pytest.approx(40)


def test_before_anything_is_known_nothing_is_foretold():
    """The first view shows no estimate, and an endless run never does."""
    forecast = Forecast(now=0.0)
    assert forecast.run_left(10) is None
    forecast.batches(1, 1.0)
    assert forecast.run_left(math.inf) is None


def test_a_resumed_epoch_counts_only_its_own_batches():
    """Batches of before the resume took no time now."""
    forecast = Forecast(now=0.0, done=90)
    forecast.batches(done=95, now=5.0)
    assert forecast.pace.seconds == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 25),
        ({"max_epochs": -1}, math.inf),
        ({"max_epochs": None, "max_steps": 10}, 2 * (10 - 4)),
        ({"max_steps": 6}, 4),
        ({"per_epoch": math.inf}, math.inf),
        ({"per_epoch": math.inf, "max_steps": 8}, 8),
        ({"epoch": 3}, 0),
        ({"max_steps": 1}, 0),
    ],
)
def test_batches_left_obeys_epochs_and_steps(changes, expected):
    """Whichever limit is reached first ends the run."""
    now = {"done": 5, "per_epoch": 10, "epoch": 0, "max_epochs": 3, "step": 4, "max_steps": -1, "accumulate": 2}
    assert batches_left(**{**now, **changes}) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (65, "1:05"),
        (3723.4, "1:02:03"),
        (7384, "2:03:04"),
        (90061, "1d 01:01:01"),
        (None, "?"),
        (math.inf, "?"),
    ],
)
def test_durations_are_read_at_a_glance(seconds, text):
    """Hours and days appear only where there are any."""
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (-1, "0 ms"), (0.014, "14 ms"), (0.0999, "0.1 s"), (2.44, "2.4 s"), (9.94, "9.9 s"), (9.96, "0:10")],
)
def test_short_times_that_are_over_are_exact(seconds, text):
    """What took less than ten seconds is not shown in whole ones."""
    assert taken_text(seconds) == text
