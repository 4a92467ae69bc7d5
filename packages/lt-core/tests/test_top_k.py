"""Which checkpoints are kept."""

import math

from hypothesis import given
from hypothesis import strategies as st

from lt_core.callbacks.checkpointing.policy import accepts, best_of, insert, worst_of

scores = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30)


def _offer(values, k, mode):
    kept: dict[str, float] = {}
    evicted = []
    for i, value in enumerate(values):
        if accepts(kept, value, k, mode):
            evicted += insert(kept, str(i), value, k, mode)
    return kept, evicted


def _key(value, mode):
    return math.inf if math.isnan(value) else value if mode == "min" else -value


@given(scores, st.integers(1, 6), st.sampled_from(["min", "max"]))
def test_exactly_the_k_best_are_kept(values, k, mode):
    """Whatever the order of scores, the kept ones are the k best, and each other one was let go once."""
    kept, evicted = _offer(values, k, mode)
    expected = sorted(_key(v, mode) for v in values)[:k]
    assert sorted(_key(v, mode) for v in kept.values()) == expected
    assert len(evicted) == len(set(evicted))
    assert not set(evicted) & set(kept)


@given(scores, st.sampled_from(["min", "max"]))
def test_minus_one_keeps_all_and_zero_none(values, mode):
    """The two special counts need no comparison."""
    assert len(_offer(values, -1, mode)[0]) == len(values)
    assert _offer(values, 0, mode)[0] == {}


@given(scores.filter(len), st.sampled_from(["min", "max"]))
def test_best_and_worst_bound_all_others(values, mode):
    """The best is nowhere beaten and the worst beats none."""
    kept = {str(i): v for i, v in enumerate(values)}
    keys = [_key(v, mode) for v in values]
    assert _key(kept[best_of(kept, mode)], mode) == min(keys)
    assert _key(kept[worst_of(kept, mode)], mode) == max(keys)


def test_a_tie_does_not_push_out_the_older_one():
    """A score that is only as good as the worst kept one is not accepted."""
    kept = {"a": 1.0, "b": 2.0}
    assert not accepts(kept, 2.0, 2, "min")
    assert accepts(kept, 1.9, 2, "min")
    assert best_of({"old": 1.0, "new": 1.0}, "min") == "old"


def test_nan_is_the_worst_in_both_modes():
    """NaN fills a free place, and leaves first."""
    for mode in ("min", "max"):
        kept, evicted = _offer([math.nan, 0.5], 1, mode)
        assert kept == {"1": 0.5}
        assert evicted == ["0"]


def test_nothing_has_no_best():
    """Without scores there is no best and no worst."""
    assert best_of({}, "min") == worst_of({}, "max") == ""
