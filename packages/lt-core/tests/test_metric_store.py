"""Log values and read them back, by step and by epoch."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import epoch_of, evaluation, log, training
from torch import nn

from lt_core.metrics.store import (
    EVAL_EPOCH_END,
    EVAL_EPOCH_START,
    FORBIDDEN,
    TRAIN_EPOCH_END,
    TRAIN_EPOCH_START,
    TRAIN_STEP,
    SilentStore,
)
from lt_interface.errors import MisconfigurationException

numbers = st.floats(-1e6, 1e6)
weighted = st.lists(st.tuples(numbers, st.integers(1, 64)), min_size=1, max_size=120)


# ---------------------------------------------------------------- defaults, flags and names


def test_training_logs_each_step_by_default() -> None:
    """A value logged in training_step goes to the loggers by step, under its own name, and not by epoch."""
    store = training()
    log(store, "loss", torch.tensor(0.5))
    assert store.take_step() == {"loss": 0.5}
    assert epoch_of(store) == {}


def test_evaluation_logs_the_epoch_by_default() -> None:
    """A value logged in validation_step is averaged over the epoch and not logged by step."""
    store = evaluation()
    log(store, "val_loss", 1.0)
    log(store, "val_loss", 2.0)
    assert store.take_step() == {}
    assert epoch_of(store) == {"val_loss": 1.5}


def test_both_ways_get_two_names() -> None:
    """With on_step and on_epoch the loggers get name_step and name_epoch."""
    store = training()
    for value in (1.0, 3.0):
        log(store, "loss", value, on_step=True, on_epoch=True)
    assert store.take_step() == {"loss_step": 3.0}
    assert epoch_of(store) == {"loss_epoch": 2.0}
    assert store.epoch_metrics()["loss_epoch"] == 2.0


def test_step_values_are_taken_once() -> None:
    """What was taken is not taken again until it is logged again; the other names do not wait for it."""
    store = training()
    log(store, "a", 1.0)
    log(store, "b", 2.0)
    assert store.take_step() == {"a": 1.0, "b": 2.0}
    log(store, "b", 3.0)
    assert store.take_step() == {"b": 3.0}
    assert store.take_step() == {}


def test_same_key_twice_in_a_step() -> None:
    """The step's value is the last one, the epoch's counts both calls."""
    store = training()
    for value in (1.0, 5.0):
        log(store, "x", value, on_step=True, on_epoch=True)
    assert store.take_step() == {"x_step": 5.0}
    assert epoch_of(store) == {"x_epoch": 3.0}


def test_spelled_out_defaults_are_the_same_arguments() -> None:
    """Writing out what None stands for is no other call; nor is another spelling of a reduction."""
    store = training()
    log(store, "x", 1.0)
    log(store, "x", 2.0, on_step=True, on_epoch=False, logger=True)
    log(store, "s", 1.0, on_epoch=True, reduce_fx="sum")
    log(store, "s", 2.0, on_epoch=True, reduce_fx=torch.sum)
    assert store.take_step() == {"x": 2.0, "s_step": 2.0}


def test_other_arguments_for_a_key_are_refused() -> None:
    """The same name with other arguments in the same hook is an error that says what differs."""
    store = training()
    log(store, "x", 1.0)
    with pytest.raises(MisconfigurationException, match="prog_bar"):
        log(store, "x", 1.0, prog_bar=True)


def test_batch_size_may_differ() -> None:
    """The batch size is a value and not a setting: another one for the same name is fine."""
    store = training()
    log(store, "x", 1.0, on_step=False, on_epoch=True, batch_size=3)
    log(store, "x", 5.0, on_step=False, on_epoch=True, batch_size=1)
    assert epoch_of(store) == {"x": 2.0}


def test_useless_flags_are_refused() -> None:
    """Neither by step nor by epoch is not useful, and says so."""
    with pytest.raises(MisconfigurationException, match="not useful"):
        log(training(), "x", 1.0, on_step=False, on_epoch=False)


@pytest.mark.parametrize("scope", [TRAIN_EPOCH_START, TRAIN_EPOCH_END, EVAL_EPOCH_START, EVAL_EPOCH_END])
def test_epoch_hooks_know_no_steps(scope: int) -> None:
    """In a hook of a whole epoch the value is the epoch's, counted once, and on_step=True is refused."""
    store = training()
    store.scope, store.size = scope, 32  # the size of the last batch says nothing here
    store.batch = None
    log(store, "x", 1.0)
    log(store, "x", 2.0)
    with pytest.raises(MisconfigurationException, match="step"):
        log(store, "y", 1.0, on_step=True)
    assert store.take_epoch() == {"x": 1.5}


def test_forbidden_places_name_the_hook() -> None:
    """Where logging has no meaning the error names the hook, and nothing is kept."""
    store = training()
    store.scope, store.hook = FORBIDDEN, "setup"
    with pytest.raises(MisconfigurationException, match=r"can't self\.log\(\) inside `setup`"):
        log(store, "x", 1.0)
    assert store.callback_metrics() == {}


def test_barebones_drops_with_one_warning() -> None:
    """Switched off, any call is accepted and dropped, with one warning."""
    store = SilentStore()
    with pytest.warns(UserWarning, match="barebones"):
        log(store, "x", 1.0)
    log(store, "y", object())  # a second warning would be an error
    assert store.take_step() == {}


def test_muted_values_are_ignored() -> None:
    """While a closure looks at a batch again, what it logs counts for nothing."""
    store = training()
    store.muted = True
    log(store, "x", 9.0, on_step=True, on_epoch=True)
    assert store.take_step() == {}
    store.muted = False
    log(store, "x", 1.0, on_step=True, on_epoch=True)
    store.muted = True
    log(store, "x", 9.0, on_step=True, on_epoch=True)
    assert store.take_step() == {"x_step": 1.0}
    assert epoch_of(store) == {"x_epoch": 1.0}


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    "value",
    [2, 2.0, torch.tensor(2), torch.tensor([2.0]), torch.tensor([[2.0]], dtype=torch.float64), Fraction(2),
     nn.Parameter(torch.tensor(2.0)), torch.tensor(2.0, requires_grad=True) * 1, torch.tensor(2.0).bfloat16()],
)  # fmt: skip
def test_numbers_of_every_kind(value: Any) -> None:
    """Any real number and any tensor of one element is taken, first and again, and comes out as a float."""
    store = training()
    for _ in range(3):
        log(store, "x", value, on_step=True, on_epoch=True)
    found = store.take_step()["x_step"]
    assert (found, type(found)) == (2.0, float)
    assert epoch_of(store) == {"x_epoch": 2.0}


@pytest.mark.parametrize(
    "value", ["1.0", None, {"a": 1.0}, [1.0], torch.zeros(2), torch.zeros(0), object(), 1j, torch.tensor(1j)]
)
def test_what_is_no_number_is_refused(value: Any) -> None:
    """Anything else is a ValueError that names the metric, and leaves nothing behind."""
    store = training()
    with pytest.raises(ValueError, match="'x'"):
        log(store, "x", value)
    log(store, "x", 1.0, prog_bar=True)
    with pytest.raises(ValueError, match="'x'"):
        log(store, "x", value, prog_bar=True)
    assert store.take_step() == {"x": 1.0}


@pytest.mark.parametrize("name", [3, None, ["x"], ("a", "b"), b"x"])
def test_names_are_strings(name: Any) -> None:
    """A name of another type is a TypeError of ours, with several loaders too."""
    store = evaluation()
    with pytest.raises(TypeError, match="name must be a string"):
        log(store, name, 1.0)
    store.suffix = "/dataloader_idx_0"
    with pytest.raises(TypeError, match="name must be a string"):
        log(store, name, 1.0)


def test_the_loaders_suffix_is_reserved() -> None:
    """A name that holds the loader's suffix already is refused, unless no suffix is added."""
    store = evaluation()
    with pytest.raises(MisconfigurationException, match="add_dataloader_idx=False"):
        log(store, "x/dataloader_idx_0", 1.0)
    log(store, "x/dataloader_idx_0", 1.0, add_dataloader_idx=False)
    assert epoch_of(store) == {"x/dataloader_idx_0": 1.0}


def test_value_is_a_snapshot() -> None:
    """A tensor that is changed in place after it was logged does not change what was logged."""
    store, value = training(), torch.tensor(1.0)
    for _ in range(2):
        log(store, "x", value, on_step=True, on_epoch=True)
    value.fill_(7.0)
    assert store.callback_metrics()["x"] == 1.0
    assert epoch_of(store) == {"x_epoch": 1.0}


def test_no_graph_is_kept() -> None:
    """A logged loss can be freed: the store holds none of its graph."""
    import weakref

    store, weight = training(), torch.ones(3, requires_grad=True)
    hidden = weight * 2
    alive = weakref.ref(hidden)
    log(store, "x", hidden.sum(), on_step=True, on_epoch=True)
    del hidden
    assert alive() is None


# ---------------------------------------------------------------- reductions


@given(weighted)
@settings(deadline=None, max_examples=60)
def test_mean_is_weighted_by_batch_size(values: list[tuple[float, int]]) -> None:
    """The epoch's mean is that of the samples, whatever the batches' sizes and however the size is given."""
    store = training()
    for i, (value, size) in enumerate(values):
        store.batch, store.size = (torch.zeros(size, 3), torch.zeros(size)), None
        log(store, "x", value, on_step=False, on_epoch=True, batch_size=size if i % 2 else None)
    exact = sum(Fraction(v) * n for v, n in values) / sum(n for _, n in values)
    scale = max(abs(v) for v, _ in values)
    assert epoch_of(store)["x"] == pytest.approx(float(exact), rel=1e-12, abs=scale * 1e-12)


@pytest.mark.parametrize(
    ("reduce_fx", "expected"),
    [("sum", 6.0), (sum, 6.0), (torch.sum, 6.0), ("min", -1.0), (min, -1.0), (torch.min, -1.0), ("max", 4.0),
     (max, 4.0), (torch.max, 4.0), ("mean", 2.0), (torch.mean, 2.0), ("MEAN", 2.0), ("avg", 2.0)],
)  # fmt: skip
def test_reductions(reduce_fx: Any, expected: float) -> None:
    """Mean, sum, min and max are known by name and by function."""
    store = training()
    for value in (3.0, -1.0, 4.0):
        log(store, "x", torch.tensor(value), on_step=False, on_epoch=True, reduce_fx=reduce_fx)
    assert epoch_of(store) == {"x": expected}


@pytest.mark.parametrize("reduce_fx", ["median", torch.median, lambda x: x, None])
def test_other_reductions_are_refused(reduce_fx: Any) -> None:
    """Another reduction is an error that points to metric objects."""
    with pytest.raises(MisconfigurationException, match="reduce_fx"):
        log(training(), "x", 1.0, on_epoch=True, reduce_fx=reduce_fx)


@pytest.mark.parametrize("kind", [float, np.float64])
@pytest.mark.parametrize("reduce_fx", ["mean", "sum", "min", "max"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_is_not_lost(reduce_fx: str, place: int, kind: Any) -> None:
    """One nan makes the epoch's value nan, wherever it stands."""
    values = [1.0, 2.0]
    values.insert(place, math.nan)
    store = training()
    for value in values:
        log(store, "x", kind(value), on_step=False, on_epoch=True, reduce_fx=reduce_fx)
    assert math.isnan(epoch_of(store)["x"])


@pytest.mark.parametrize(
    "batch",
    [torch.zeros(6, 2), (torch.zeros(6), torch.zeros(6, 2)), {"x": torch.zeros(6)}, [torch.zeros(6), ["text"]],
     {"a": [{"b": torch.zeros(6, 1)}], "c": "text"}, ["text", torch.zeros(6)]],
)  # fmt: skip
def test_size_is_found_in_any_batch(batch: Any) -> None:
    """The size is that of the first tensor's first dimension, however deep."""
    store = training()
    store.batch = batch
    log(store, "x", 1.0, on_step=False, on_epoch=True)
    store.batch, store.size = torch.zeros(2), None
    log(store, "x", 5.0, on_step=False, on_epoch=True)
    assert epoch_of(store) == {"x": 2.0}


def test_tensors_without_dimensions_count_as_one_sample() -> None:
    """A batch of 0-dim tensors has size one."""
    store = training()
    store.batch = (torch.tensor(1.0), torch.tensor(2))
    log(store, "x", 1.0, on_step=False, on_epoch=True)
    store.batch, store.size = torch.zeros(3), None
    log(store, "x", 5.0, on_step=False, on_epoch=True)
    assert epoch_of(store) == {"x": 4.0}


def test_different_sizes_in_a_batch_warn() -> None:
    """Where tensors of a batch differ, the first one's size counts and one warning says so."""
    store = training()
    store.batch = (torch.zeros(6), torch.zeros(3))
    with pytest.warns(UserWarning, match="batch_size="):
        log(store, "x", 1.0, on_step=False, on_epoch=True)
    store.size = None
    log(store, "x", 1.0, on_step=False, on_epoch=True)  # a second warning would be an error
    assert store.size == 6


def test_batch_without_tensors() -> None:
    """No size can be found: an error that asks for batch_size, but only where a mean over the epoch needs one."""
    store = training()
    store.batch = ["a", "b"]
    log(store, "step", 1.0)
    log(store, "sum", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
    log(store, "given", 1.0, on_step=False, on_epoch=True, batch_size=2)
    with pytest.raises(MisconfigurationException, match="batch_size="):
        log(store, "mean", 1.0, on_step=False, on_epoch=True)


# ---------------------------------------------------------------- destinations


def test_destinations() -> None:
    """Loggers, progress bar and callbacks each get what is meant for them; callbacks get everything."""
    store = training()
    log(store, "all", 1.0, prog_bar=True)
    log(store, "quiet", 2.0, logger=False)
    log(store, "bar", 3.0, prog_bar=True, logger=False, on_epoch=True)
    log(store, "late", 4.0, on_step=False, on_epoch=True, prog_bar=True, logger=False)
    assert store.take_step() == {"all": 1.0}
    assert store.progress_bar_metrics() == {"all": 1.0, "bar_step": 3.0}
    assert {k: float(v) for k, v in store.callback_metrics().items()} == {
        "all": 1.0, "quiet": 2.0, "bar": 3.0, "bar_step": 3.0
    }  # fmt: skip
    store.scope, store.batch = TRAIN_EPOCH_END, None
    shown = store.progress_bar_metrics()
    assert (shown["bar_epoch"], shown["late"]) == (3.0, 4.0)
    assert store.take_epoch() == {}
    assert {k: v for k, v in store.epoch_metrics().items() if k == "late"} == {"late": 4.0}


def test_callbacks_see_the_epoch_at_its_end() -> None:
    """In and after the end hook a name logged both ways is the epoch's value, and name_step the last step's."""
    store = training()
    for value in (1.0, 3.0):
        log(store, "x", value, on_step=True, on_epoch=True)
    assert float(store.callback_metrics()["x"]) == 3.0
    store.scope = TRAIN_EPOCH_END
    found = {k: float(v) for k, v in store.callback_metrics().items()}
    assert found == {"x": 2.0, "x_step": 3.0, "x_epoch": 2.0}
    store.take_epoch()
    store.scope = FORBIDDEN
    assert {k: float(v) for k, v in store.callback_metrics().items()} == found


def test_callback_metrics_are_small_tensors() -> None:
    """Callbacks get 0-dim floating tensors, whatever was logged."""
    store = training()
    log(store, "i", 3)
    log(store, "t", torch.tensor([2.0]))
    log(store, "b", torch.tensor(True))
    for value in store.callback_metrics().values():
        assert value.shape == ()
        assert value.dtype in (torch.float32, torch.float64)


def test_evaluation_gives_callbacks_the_epoch_only() -> None:
    """Of an evaluation callbacks see nothing but the epoch's values, and those from its end on."""
    store = evaluation()
    log(store, "x", 1.0, on_step=True, on_epoch=True)
    log(store, "s", 1.0, on_step=True, on_epoch=False)
    assert store.callback_metrics() == {}
    epoch_of(store)
    assert {k: float(v) for k, v in store.callback_metrics().items()} == {"x": 1.0, "x_epoch": 1.0}


def test_loaders_are_told_apart() -> None:
    """Each loader's values go under its own name, batch by batch in any order, and both kinds of suffix."""
    store = evaluation()
    for suffix, value in (("/dataloader_idx_0", 1.0), ("/odd", 5.0), ("/dataloader_idx_0", 3.0), ("/odd", 7.0)):
        store.suffix = suffix
        log(store, "x", value)
        log(store, "y", value, on_step=True, on_epoch=True)
        log(store, "z", value, add_dataloader_idx=False)
    assert store.take_step() == {"y_step/dataloader_idx_0": 3.0, "y_step/odd": 7.0}
    store.suffix = ""
    expected = {"x/dataloader_idx_0": 2.0, "y_epoch/dataloader_idx_0": 2.0, "x/odd": 6.0, "y_epoch/odd": 6.0, "z": 4.0}
    assert epoch_of(store) == expected
    assert {k: v for k, v in store.epoch_metrics().items() if k in expected} == expected


@pytest.mark.parametrize("again", [{"on_epoch": True}, {"on_step": False, "on_epoch": True}])
def test_reset_begins_an_epoch(again: dict[str, Any]) -> None:
    """A new epoch knows nothing of the last one, and may log a name as before or in another way."""
    store = training()
    log(store, "x", 1.0, on_epoch=True)
    epoch_of(store)
    store.reset()
    store.scope, store.batch = TRAIN_STEP, torch.zeros(2)
    assert store.callback_metrics() == store.take_step() == store.epoch_metrics() == {}
    log(store, "x", 5.0, **again)
    assert set(epoch_of(store).values()) == {5.0}


# ---------------------------------------------------------------- what a step returned


def test_log_entries_of_a_returned_dict() -> None:
    """Scalars under "log" are logged with the hook's defaults; all else in the dict is left alone."""
    store = training()
    store.add_returned({"loss": torch.tensor(1.0), "log": {"a": torch.tensor(2.0), "b": 3, "c": "text", "d": [1]}})
    store.add_returned({"loss": torch.tensor(1.0), "log": torch.tensor(1.0)})
    assert store.take_step() == {"a": 2.0, "b": 3.0}


def test_returned_losses_of_an_evaluation() -> None:
    """Numbers whose keys begin with val_ or test_ are averaged over the samples; nothing else is."""
    store = evaluation()
    for value, size in ((1.0, 3), (5.0, 1)):
        store.batch, store.size = torch.zeros(size), None
        store.add_returned(
            {
                "val_loss": torch.tensor(value),
                "test_n": 1,
                "other": 1.0,
                "val_preds": torch.zeros(size),
                "val_name": "x",
            }
        )
    assert epoch_of(store) == {"val_loss": 2.0, "test_n": 1.0}


def test_returned_losses_do_not_count_in_training() -> None:
    """A training step that returns val_loss logs nothing by that."""
    store = training()
    store.add_returned({"loss": 1.0, "val_loss": 2.0})
    assert store.take_step() == epoch_of(store) == {}


def test_what_the_module_logged_itself_wins() -> None:
    """A returned value whose name the module logged itself is not counted again."""
    store = evaluation()
    for _ in range(2):
        log(store, "val_loss", 1.0, prog_bar=True)
        store.add_returned({"val_loss": torch.tensor(100.0), "log": {"val_loss": 100.0}})
    assert epoch_of(store) == {"val_loss": 1.0}


def test_returned_with_several_loaders() -> None:
    """Returned losses get their loader's name."""
    store = evaluation()
    for suffix, value in (("/a", 1.0), ("/b", 2.0), ("/a", 3.0)):
        store.suffix = suffix
        store.add_returned({"val_loss": value})
    assert epoch_of(store) == {"val_loss/a": 2.0, "val_loss/b": 2.0}
