"""The values of single flags: types, ranges, and what each form becomes."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import fields
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_core import Trainer
from lt_core.config.flags import TrainerConfig, parse
from lt_interface import ConfigError, MisconfigurationException, registry

LIMITS = ["limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"]
SWITCHES = [
    "enable_checkpointing",
    "enable_progress_bar",
    "enable_model_summary",
    "benchmark",
    "inference_mode",
    "use_distributed_sampler",
    "detect_anomaly",
    "barebones",
    "sync_batchnorm",
    "enable_autolog_hparams",
    "validate_at_start",
    "data_on_device",
]
COUNTS = {
    "num_nodes": 1,
    "max_epochs": -1,
    "min_epochs": 0,
    "max_steps": -1,
    "min_steps": 0,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": -1,
    "log_every_n_steps": 0,
    "accumulate_grad_batches": 1,
    "gc_every_n_steps": 1,
    "reload_dataloaders_every_n_epochs": 0,
}


@pytest.fixture(autouse=True)
def _no_flags_in_the_environment(monkeypatch):
    for name in os.environ:
        if name.startswith("PL_TRAINER_"):
            monkeypatch.delenv(name)


def problems(**flags):
    """Return the lines of the report for these flags; empty if they are fine."""
    try:
        parse(flags)
    except ConfigError as error:
        return [str(p) for p in error.problems]
    return []


needs_mixed = pytest.mark.skipif(
    "bf16-mixed" not in registry.precisions.names(),
    reason="bf16-mixed comes with lt-accel",
)


class TestTypes:
    @pytest.mark.parametrize("name", SWITCHES)
    @pytest.mark.parametrize("value", ["False", 1, 0, 1.0, [True]])
    def test_switches_take_bools_alone(self, name, value):
        """A text or a number is no switch: "False" would count as true."""
        (line,) = problems(**{name: value})
        assert line.startswith(f"Trainer({name}={value!r}): must be True or False.")

    @pytest.mark.parametrize(("name", "low"), COUNTS.items())
    def test_counts(self, name, low):
        """Integers of Python and numpy count from their least on; bools, floats and texts do not."""
        with_time = {"val_check_interval": 1.0}
        assert getattr(parse({name: low + 3, **with_time}), name) == low + 3
        taken = getattr(parse({name: np.int64(low + 3)}), name)
        assert taken == low + 3
        assert type(taken) is int
        for wrong in (low - 1, True, float(low + 3), str(low + 3), [1]):
            (line,) = problems(**{name: wrong})
            assert line.startswith(f"Trainer({name}={wrong!r}): must be an integer of at least {low}")

    def test_whole_float_says_what_to_write(self):
        """A float that is a whole number is refused with the integer to write."""
        assert problems(max_epochs=3.0) == [
            "Trainer(max_epochs=3.0): must be an integer of at least -1 (no limit). Write 3."
        ]
        assert problems(max_steps=None)[0].endswith("Write -1 for no limit.")
        assert problems(max_epochs="3")[0].endswith("Write 3, without quotes.")

    def test_wrong_type_is_a_type_error_and_a_value_error(self):
        """A wrong type can be caught as TypeError, and everything as ValueError or MisconfigurationException."""
        for kind in (TypeError, ValueError, MisconfigurationException):
            with pytest.raises(kind):
                parse({"gradient_clip_val": "a"})
        with pytest.raises(ValueError) as caught:
            parse({"num_nodes": 0})
        assert not isinstance(caught.value, TypeError)

    def test_gradient_clipping(self):
        """The bound is a number, no bool and not nan; the algorithm is taken in any case."""
        assert parse({"gradient_clip_val": np.float32(0.5)}).gradient_clip_val == 0.5
        assert parse({"gradient_clip_val": 0}).gradient_clip_val == 0
        assert parse({"gradient_clip_algorithm": "Value"}).gradient_clip_algorithm == "value"
        assert parse({"gradient_clip_algorithm": None}).gradient_clip_algorithm == "norm"
        assert problems(gradient_clip_val=True)
        assert problems(gradient_clip_val=math.nan)
        assert problems(gradient_clip_algorithm="nrom") == [
            "Trainer(gradient_clip_algorithm='nrom'): must be 'norm' or 'value'. Did you mean \"norm\"?"
        ]

    def test_deterministic(self):
        """Deterministic takes a bool or "warn", and keeps cuDNN from searching unless benchmark is set."""
        assert parse({}).benchmark is None
        assert parse({"deterministic": "warn"}).benchmark is False
        assert parse({"deterministic": True, "benchmark": True}).benchmark is True
        assert problems(deterministic="error")
        assert problems(deterministic=1)

    def test_root_folder(self, tmp_path):
        """The root is a folder of this machine; a file in its place and a remote address are refused."""
        assert parse({"default_root_dir": tmp_path}).default_root_dir == str(tmp_path)
        assert parse({"default_root_dir": "~/runs"}).default_root_dir == os.path.join(os.path.expanduser("~"), "runs")
        assert parse({"default_root_dir": "runs"}).default_root_dir == os.path.join(os.getcwd(), "runs")
        assert "remote addresses are not supported" in problems(default_root_dir="s3://bucket/runs")[0]
        file = tmp_path / "file"
        file.touch()
        assert "must be a folder" in problems(default_root_dir=file)[0]
        assert "must be a path" in problems(default_root_dir=3)[0]

    @given(st.sampled_from([f.name for f in fields(TrainerConfig) if f.name != "explicit"]), st.data())
    def test_no_value_breaks_the_report(self, name, data):
        """Whatever is given for a flag, it is taken or refused in the one form."""
        anything = [st.text(), st.floats(), st.integers(), st.binary(), st.complex_numbers(), st.lists(st.none())]
        value = data.draw(st.one_of(anything))
        for line in problems(**{name: value}):
            assert line.startswith(f"Trainer({name}=")
            assert "): " in line


class TestLimits:
    @given(st.sampled_from([*LIMITS, "overfit_batches"]), st.integers(0, 10**12))
    def test_integers_are_batches(self, name, amount):
        """An integer stays an integer: a number of batches."""
        value = getattr(parse({name: amount}), name)
        assert value == amount
        assert type(value) is int

    @given(st.sampled_from([*LIMITS, "overfit_batches"]), st.floats(0, 1))
    def test_floats_are_fractions(self, name, amount):
        """A float from 0 to 1 stays a float: a fraction."""
        value = getattr(parse({name: amount}), name)
        assert value == amount
        assert type(value) is float

    @given(st.sampled_from([*LIMITS, "overfit_batches"]), st.floats().filter(lambda x: not 0 <= x <= 1))
    def test_other_floats_are_refused(self, name, amount):
        """No other float is a fraction, nan and infinity included."""
        assert len(problems(**{name: amount})) == 1

    @pytest.mark.parametrize("wrong", [-1, True, "10", "1.0", [1]])
    def test_refused(self, wrong):
        """Negative numbers, bools and texts are no limits."""
        assert len(problems(limit_val_batches=wrong)) == 1

    def test_large_float_says_what_to_write(self):
        """A float that can only be a number of batches is refused with the integer."""
        assert problems(limit_train_batches=2.0)[0].endswith("Write 2 for 2 batches.")

    @pytest.mark.parametrize(("value", "said"), [(1, "one batch"), (1.0, "all of them")])
    def test_one_and_all_are_told_apart(self, value, said, caplog):
        """1 and 1.0 are different, and it is said which was meant."""
        with caplog.at_level(logging.INFO, "lt_core"):
            parse({"limit_val_batches": value})
        assert f"Trainer(limit_val_batches={value!r}): {said}." in caplog.text

    def test_overfit_sets_both_limits(self):
        """overfit_batches limits training and validation alike, and wins over their own limits."""
        config = parse({"overfit_batches": 3})
        assert (config.limit_train_batches, config.limit_val_batches, config.limit_test_batches) == (3, 3, 1.0)
        with pytest.warns(UserWarning, match="overfit_batches decides, limit_train_batches is ignored"):
            assert parse({"overfit_batches": 0.5, "limit_train_batches": 7}).limit_train_batches == 0.5


class TestTimes:
    @given(st.integers(0, 999), st.integers(0, 23), st.integers(0, 59), st.integers(1, 59))
    def test_clock(self, days, hours, minutes, seconds):
        """A clock text is days, hours, minutes and seconds."""
        text = f"{days:02}:{hours:02}:{minutes:02}:{seconds:02}"
        span = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        assert parse({"max_time": text}).max_time == span
        assert parse({"val_check_interval": text}).val_check_interval == span

    @given(st.timedeltas(min_value=timedelta(microseconds=1)))
    def test_timedeltas(self, span):
        """A timedelta is taken as it is."""
        assert parse({"max_time": span}).max_time == span

    @given(st.dictionaries(st.sampled_from(["days", "hours", "minutes", "seconds"]), st.integers(1, 99), min_size=1))
    def test_dicts(self, parts):
        """A dict holds a timedelta's arguments, of Python or numpy."""
        assert parse({"max_time": parts}).max_time == timedelta(**parts)
        assert parse({"max_time": {k: np.int32(v) for k, v in parts.items()}}).max_time == timedelta(**parts)

    @given(st.text())
    def test_other_texts_are_refused(self, text):
        """A text is a clock or one problem; nothing else comes out."""
        lines = problems(max_time=text)
        assert len(lines) == 1 or parse({"max_time": text}).max_time > timedelta(0)

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ("1:30:00", 'Did you mean "00:01:30:00"?'),
            ("90", "DD:HH:MM:SS"),
            ("00:00:00:00", "longer than nothing"),
            (timedelta(seconds=-1), "longer than nothing"),
            ({}, "longer than nothing"),
            ({"hour": 1}, 'Did you mean "hours"?'),
            ({"hours": "1"}, "'hours' must be a number"),
            ({"days": math.nan}, "a timedelta can hold"),
            ({"days": 10**12}, "a timedelta can hold"),
            ("9" * 30 + ":00:00:00", "a timedelta can hold"),
            (90, 'Write {"seconds": 90} if seconds are meant.'),
        ],
    )
    def test_refused(self, wrong, said):
        """A time that is none is refused with what to write."""
        (line,) = problems(max_time=wrong)
        assert said in line


class TestValidationInterval:
    @given(st.floats(0, 1, exclude_min=True))
    def test_fractions(self, value):
        """A float above 0, to 1, is a fraction of the epoch."""
        assert parse({"val_check_interval": value}).val_check_interval == value

    @given(st.integers(1, 10**9))
    def test_counts(self, value):
        """An integer is a number of batches."""
        taken = parse({"val_check_interval": value}).val_check_interval
        assert taken == value
        assert type(taken) is int

    @given(st.one_of(st.integers(max_value=0), st.floats().filter(lambda x: not 0 < x <= 1), st.booleans()))
    def test_refused(self, value):
        """Nothing, negative numbers, fractions above one and bools are refused."""
        assert len(problems(val_check_interval=value)) == 1

    def test_nothing_says_what_was_meant(self):
        """0 is answered with the flags that turn validation off and that begin with it."""
        assert "limit_val_batches=0" in problems(val_check_interval=0)[0]
        assert "validate_at_start=True" in problems(val_check_interval=0.0)[0]

    def test_without_epochs_needs_a_count_or_a_time(self):
        """A fraction has no meaning when validation does not count epochs."""
        assert parse({"check_val_every_n_epoch": None, "val_check_interval": "00:00:10:00"})
        (line,) = problems(check_val_every_n_epoch=None, val_check_interval=0.5)
        assert line.startswith("Trainer(check_val_every_n_epoch=None, val_check_interval=0.5): ")
        assert len(problems(check_val_every_n_epoch=None)) == 1

    def test_at_start_needs_validation(self):
        """validate_at_start with no validation batches is refused."""
        assert parse({"validate_at_start": True}).validate_at_start
        assert len(problems(validate_at_start=True, limit_val_batches=0)) == 1


class TestDevices:
    @given(st.integers(1, 10**6))
    def test_counts(self, count):
        """A number and its text are a count."""
        assert parse({"devices": count}).devices == count
        assert parse({"devices": np.int64(count)}).devices == count
        assert parse({"devices": str(count)}).devices == count

    @given(st.lists(st.integers(0, 10**6), min_size=1, unique=True))
    def test_indices(self, indices):
        """A list, and a text with commas, are indices."""
        assert parse({"devices": indices}).devices == tuple(indices)
        assert parse({"devices": np.array(indices)}).devices == tuple(indices)
        assert parse({"devices": ",".join(map(str, indices)) + ","}).devices == tuple(indices)

    @given(st.text())
    def test_texts(self, text):
        """Any text is auto, a count, indices, or one problem."""
        assert len(problems(devices=text)) == 1 or isinstance(parse({"devices": text}).devices, (str, int, tuple))

    @pytest.mark.parametrize("value", ["auto", -1, "-1", " auto "])
    def test_words(self, value):
        """Auto and -1 are kept for the accelerator to answer."""
        assert parse({"devices": value}).devices in ("auto", -1)

    @pytest.mark.parametrize(
        "wrong",
        [
            *(0, "0", [], -2, "-2", True, [True], [0, 0], [-1], ["0"], 2.0, None, "gpu", "", ",", {0: 1}),
            *(10**12, "999999999", np.array(1), np.array("1")),
        ],
    )
    def test_refused(self, wrong):
        """No device, a negative one, one twice, and what is no number are refused."""
        (line,) = problems(devices=wrong)
        assert 'must be "auto", a count, -1 for all, or indices' in line


class TestPrecision:
    @pytest.mark.parametrize(
        ("written", "name"),
        [(32, "32-true"), ("32", "32-true"), (64, "64-true"), (np.int64(64), "64-true"), ("16-true",) * 2],
    )
    def test_full_names(self, written, name):
        """Short names stand for full ones."""
        assert parse({"precision": written}).precision == name

    @needs_mixed
    def test_bf16_means_mixed_with_a_warning(self):
        """bf16 is taken as bf16-mixed, which is said."""
        with pytest.warns(UserWarning, match="bf16-mixed"):
            assert parse({"precision": "bf16"}).precision == "bf16-mixed"

    @needs_mixed
    def test_half_on_a_cpu_is_bf16(self):
        """16-mixed on a CPU becomes bf16-mixed, which is said."""
        with pytest.warns(UserWarning, match="a CPU has no 16-mixed"):
            trainer = Trainer(precision="16-mixed", accelerator="cpu", max_epochs=1, logger=False)
        assert trainer.precision == "bf16-mixed"

    @pytest.mark.parametrize("wrong", [True, 8, 32.0, "fp32", None.__class__])
    def test_refused(self, wrong):
        """What is no precision is refused."""
        assert len(problems(precision=wrong)) == 1
