"""The flags together: defaults, plugins, exclusions, effects, and one report of all problems."""

from __future__ import annotations

import ast
import logging
import math
import os
import pickle
from dataclasses import FrozenInstanceError, fields
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import lt_core
from lt_core import Trainer
from lt_core.callback import Callback
from lt_core.config.flags import TrainerConfig, parse, resolve_epochs
from lt_core.config.legacy import ADVICE
from lt_core.demos import BoringModel
from lt_core.notices import PossibleUserWarning
from lt_core.run.old_flags import GIVEN, OLD
from lt_interface import ConfigError, registry

LIMITS = ["limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"]


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


class StandIn:
    """Object with every method that a plugin of any kind must have."""

    name = "stand-in"

    def __getattr__(self, name):
        raise AttributeError(name)

    def _anything(self, *args, **kwargs):
        raise AssertionError("a configuration calls nothing")

    is_available = parse_devices = device = setup = shard = engine = leave = _anything
    launch = start = stop = profile = log_metrics = _anything


class APrecision:
    """Object that looks like a precision."""

    def convert(self, module): ...

    def convert_batch(self, batch): ...

    def scale(self, loss): ...

    def step(self, optimizer, closure=None): ...


class ACheckpointIO:
    """Object that looks like a checkpoint format."""

    def save(self, tree, path): ...

    def load(self, path): ...

    def peek(self, path): ...

    def remove(self, path): ...


class WithState(Callback):
    """Callback that keeps a state."""

    def state_dict(self):
        return {"n": 1}


class TestDefaults:
    def test_defaults_are_resolved(self):
        """Without flags, every None of the constructor stands for its meaning."""
        config = parse({})
        assert config == TrainerConfig()
        assert config.precision == "32-true"
        assert config.logger == ("csv",)
        assert config.log_every_n_steps == 50
        assert config.num_sanity_val_steps == 2
        assert config.val_check_interval == 1.0
        assert [getattr(config, name) for name in LIMITS] == [1.0] * 4
        assert config.default_root_dir == os.getcwd()
        assert config.enable_checkpointing
        assert config.enable_progress_bar
        assert config.enable_model_summary
        assert config.explicit == frozenset()

    def test_none_means_the_default(self):
        """A None where the default is None changes nothing and does not count as given."""
        nones = dict.fromkeys(["precision", "logger", "callbacks", "plugins", "profiler", "launcher", *LIMITS])
        nones |= dict.fromkeys(["max_epochs", "max_time", "val_check_interval", "log_every_n_steps", "benchmark"])
        assert parse(nones) == TrainerConfig()

    def test_no_cadence_by_epochs_is_none(self):
        """check_val_every_n_epoch=None is kept, for it has a meaning."""
        config = parse({"check_val_every_n_epoch": None, "val_check_interval": 7})
        assert config.check_val_every_n_epoch is None
        assert config.explicit == {"check_val_every_n_epoch", "val_check_interval"}

    def test_frozen_and_picklable(self):
        """A configuration can be sent to another process and not be changed."""
        config = parse({"max_epochs": 3, "max_time": {"hours": 1}})
        with pytest.raises(FrozenInstanceError):
            config.max_epochs = 4
        assert pickle.loads(pickle.dumps(config)) == config


class TestPlugins:
    def test_unknown_names_list_what_is_installed(self):
        """A name that nobody provides is answered with the installed ones and the nearest."""
        (line,) = problems(strategy="single_devise")
        installed = ", ".join(registry.strategies.names())
        assert line == (
            f"Trainer(strategy='single_devise'): no strategy of that name. Installed: {installed}. "
            'Did you mean "single_device"?'
        )
        for flag in ("accelerator", "precision", "logger", "profiler", "launcher"):
            (line,) = problems(**{flag: "nobody"})
            assert line.startswith(f"Trainer({flag}='nobody'): no ")
            assert "Installed: " in line

    def test_a_sibling_gives_its_command(self, monkeypatch):
        """A name that another package of ours brings is answered with the command that installs it."""
        monkeypatch.setitem(registry._scan(), "lt.loggers", {})
        monkeypatch.setitem(registry._scan(), "lt.precisions", {})
        lines = problems(logger="tensorboard", precision="bf16-mixed")
        assert len(lines) == 2
        assert all("this " in line and "comes with another package. Run: pip install " in line for line in lines)
        assert "lt-loggers[tensorboard]" in "".join(lines)
        assert "lt-accel" in "".join(lines)

    def test_names_are_not_imported(self, monkeypatch):
        """Checking a name imports no plugin."""

        class Broken:
            dist = None
            value = "broken:Thing"

            def load(self):
                raise AssertionError("imported")

        monkeypatch.setitem(registry._scan(), "lt.strategies", {"broken": (Broken(),)})
        assert parse({"strategy": "broken"}).strategy == "broken"

    @pytest.mark.parametrize("flag", ["accelerator", "strategy", "profiler", "launcher"])
    def test_instances_are_taken(self, flag):
        """An instance is kept as it is; its class and any other object are refused."""
        instance = StandIn()
        assert getattr(parse({flag: instance}), flag) is instance
        (line,) = problems(**{flag: StandIn})
        assert line.endswith("Pass an instance: StandIn(...).")
        assert len(problems(**{flag: 3})) == 1

    def test_gpu_stands_for_what_is_installed(self, monkeypatch):
        """accelerator="gpu" is taken where an accelerator for a GPU is installed."""
        points = {"cpu": registry._scan()["lt.accelerators"]["cpu"]}
        monkeypatch.setitem(registry._scan(), "lt.accelerators", points)
        (line,) = problems(accelerator="gpu")
        assert line.startswith("Trainer(accelerator='gpu'): no accelerator of this kind is installed. Run: pip install")
        assert line.endswith("'lt-accel[cuda]'")
        monkeypatch.setitem(registry._scan(), "lt.accelerators", {**points, "cuda": points["cpu"]})
        assert parse({"accelerator": "gpu"}).accelerator == "gpu"

    def test_no_rule_knows_a_plugin_by_name(self):
        """Outside of the built-in plugins nothing of the package compares with a plugin's name."""
        devices = {"cpu", "cuda", "mps"}  # torch's words, too
        names = {name for group in registry.SIBLINGS.values() for name in group} - devices
        root = Path(lt_core.__file__).parent
        found = [
            f"{path.relative_to(root)}:{node.lineno}"
            for path in root.rglob("*.py")
            if "builtin" not in path.parts
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Compare)
            and any(isinstance(c, ast.Constant) and c.value in names for c in [node.left, *node.comparators])
        ]
        assert found == []

    def test_plugin_list(self):
        """Plugins are sorted by what they are; the precision among them is the precision."""
        precision, io = APrecision(), ACheckpointIO()
        config = parse({"plugins": [precision, io]})
        assert config.precision is precision
        assert config.plugin("precision") is precision
        assert config.plugin("checkpoint_io") is io
        assert config.plugin("cluster") is None
        assert parse({"plugins": io}).plugins == (io,)

    def test_plugins_exclude_one_another(self):
        """Two of a kind, a flag that says the same, a class and a stranger are refused, all at once."""
        lines = problems(plugins=[ACheckpointIO(), ACheckpointIO(), APrecision(), APrecision, "async"], precision=64)
        assert len(lines) == 4
        assert "two are checkpoint_io" in lines[0]
        assert "Pass an instance: APrecision(...)." in lines[1]
        assert "str is none" in lines[2]
        assert "the precision is given twice" in lines[3]


class TestLoggers:
    def test_forms(self):
        """True is the CSV logger, False none; names, loggers and lists of both are kept."""
        logger = StandIn()
        assert parse({"logger": True}).logger == ("csv",)
        assert parse({"logger": False}).logger == ()
        assert parse({"logger": "csv"}).logger == ("csv",)
        assert parse({"logger": logger}).logger == (logger,)
        assert parse({"logger": [logger, "csv"]}).logger == (logger, "csv")
        assert parse({"logger": []}).logger == ()

    def test_what_can_not_log_is_refused(self):
        """A class, an object without log_metrics and the same logger twice are refused."""
        logger = StandIn()
        assert problems(logger=StandIn)[0].endswith("Pass an instance: StandIn(...).")
        assert "object has no log_metrics" in problems(logger=object())[0]
        assert "given twice" in problems(logger=[logger, logger])[0]
        assert "'nobody': no logger of that name" in problems(logger=["csv", "nobody"])[0]
        assert "int has no log_metrics" in problems(logger=1)[0]


class TestCallbacks:
    def test_forms(self):
        """One callback and several become a tuple."""
        one, other = Callback(), WithState()
        assert parse({"callbacks": one}).callbacks == (one,)
        assert parse({"callbacks": [one, other]}).callbacks == (one, other)
        assert parse({"callbacks": []}).callbacks == ()

    def test_strangers_are_refused(self):
        """A class and an object that is no callback are refused, each by name."""
        foreign = type("Callback", (), {"__module__": "pytorch_lightning.callbacks.callback"})
        lines = problems(callbacks=[Callback(), WithState, object(), foreign()])
        assert len(lines) == 3
        assert lines[0].endswith("Pass an instance: WithState(...).")
        assert lines[1].endswith("and object is none. Subclass lt_core.Callback.")
        assert lines[2].endswith("import it from lt_core.callbacks.")

    def test_two_states_under_one_name(self):
        """Callbacks that would overwrite each other's state are refused; stateless ones are not."""
        assert parse({"callbacks": [Callback(), Callback()]})
        (line,) = problems(callbacks=[WithState(), WithState()])
        assert "two callbacks keep their state under 'WithState'. Give each its own state_key." in line
        same = WithState()
        assert "the same callback is given twice" in problems(callbacks=[same, same])[0]

    def test_flags_that_exclude_callbacks(self):
        """A checkpoint or a bar together with the flag that turns it off, and two bars, are refused."""
        from lt_core.callbacks import Checkpoint, ProgressBar

        checkpoint, bar = Checkpoint(), ProgressBar()
        assert parse({"callbacks": [checkpoint, bar]})
        lines = problems(
            callbacks=[checkpoint, bar, ProgressBar()], enable_checkpointing=False, enable_progress_bar=False
        )
        assert len(lines) == 3
        assert "enable_checkpointing is off, and callbacks holds Checkpoint" in lines[0]
        assert "enable_progress_bar is off, and callbacks holds ProgressBar" in lines[1]
        assert "only one progress bar" in lines[2]

    def test_a_timer_wins_over_max_time(self, caplog):
        """With a Timer among the callbacks max_time is ignored, which is said."""
        from lt_core.callbacks import Timer

        with caplog.at_level(logging.INFO, "lt_core"):
            config = parse({"callbacks": Timer(duration="00:00:10:00"), "max_time": "00:01:00:00"})
        assert config.max_time is None
        assert "callbacks holds a Timer" in caplog.text


class TestModes:
    @pytest.mark.parametrize(("value", "batches"), [(True, 1), (1, 1), (3, 3), (np.int8(3), 3)])
    def test_fast_dev_run(self, value, batches):
        """A trial run sets the limits, whatever else was written; 1 is True."""
        config = parse({"fast_dev_run": value, "max_epochs": 9, "limit_val_batches": 0.5, "check_val_every_n_epoch": 4})
        assert [getattr(config, name) for name in LIMITS] == [batches] * 4
        assert (config.max_steps, config.max_epochs, config.num_sanity_val_steps) == (batches, 1, 0)
        assert (config.val_check_interval, config.check_val_every_n_epoch) == (1.0, 1)
        assert config.fast_dev_run is (True if batches == 1 else 3) or config.fast_dev_run == 3

    def test_fast_dev_run_off(self):
        """0 is False and changes nothing."""
        config = parse({"fast_dev_run": 0})
        assert config.fast_dev_run is False
        assert config.limit_train_batches == 1.0
        assert len(problems(fast_dev_run=-1)) == 1
        assert len(problems(fast_dev_run=1.5)) == 1

    def test_barebones(self):
        """Barebones turns off everything that could cost time."""
        config = parse({"barebones": True, "logger": False, "num_sanity_val_steps": 0, "profiler": None})
        assert config.logger == ()
        assert (config.enable_checkpointing, config.enable_progress_bar, config.enable_model_summary) == (False,) * 3
        assert (config.num_sanity_val_steps, config.log_every_n_steps) == (0, 0)

    @pytest.mark.parametrize(
        ("flag", "value"),
        [
            ("enable_checkpointing", True),
            ("logger", True),
            ("logger", StandIn()),
            ("enable_progress_bar", True),
            ("enable_model_summary", True),
            ("num_sanity_val_steps", 2),
            ("num_sanity_val_steps", -1),
            ("log_every_n_steps", 50),
            ("fast_dev_run", True),
            ("detect_anomaly", True),
            ("profiler", "passthrough"),
        ],
    )
    def test_barebones_conflicts(self, flag, value):
        """A flag that asks for what barebones turns off is refused."""
        (line,) = problems(barebones=True, **{flag: value})
        assert line.endswith(f"): barebones turns {flag} off. Leave one of them out.")

    def test_all_sanity_batches(self):
        """-1 sanity batches are all of them."""
        assert parse({"num_sanity_val_steps": -1}).num_sanity_val_steps == math.inf

    def test_least_and_most(self):
        """A least number of epochs or steps above the most is refused."""
        assert problems(min_epochs=5, max_epochs=2, min_steps=5, max_steps=2) == [
            "Trainer(min_epochs=5, max_epochs=2): min_epochs must not be more than max_epochs. Write max_epochs=5.",
            "Trainer(min_steps=5, max_steps=2): min_steps must not be more than max_steps. Write max_steps=5.",
        ]
        assert parse({"min_epochs": 5, "max_epochs": -1})
        assert parse({"min_epochs": 5, "max_epochs": 5, "fast_dev_run": True}).max_epochs == 1


class TestEpochs:
    def test_nothing_says_when_to_stop(self):
        """Without any bound 1000 epochs are run, with a warning where they are: a trainer that evaluates has none."""
        assert resolve_epochs(parse({}), has_timer=False) == (1000, 0)

        class Once(BoringModel):
            def on_train_start(self):
                raise StopIteration

        trainer = Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False)
        trainer.validate(Once(), verbose=False)
        with pytest.warns(PossibleUserWarning, match="1000 epochs"), pytest.raises(StopIteration):
            trainer.fit(Once())

    @pytest.mark.parametrize(
        ("flags", "has_timer", "expected"),
        [
            ({}, True, (-1, 0)),
            ({"max_steps": 10}, False, (-1, 0)),
            ({"max_time": {"hours": 1}}, False, (-1, 0)),
            ({"max_epochs": -1}, False, (-1, 0)),
            ({"max_epochs": 0}, False, (0, 0)),
            ({"max_epochs": 3, "min_steps": 5}, False, (3, 1)),
            ({"max_epochs": 3, "min_epochs": 2, "min_steps": 5}, False, (3, 2)),
            ({"fast_dev_run": True}, False, (1, 0)),
        ],
    )
    def test_bounds(self, flags, has_timer, expected):
        """Any bound replaces the thousand epochs; least steps make at least one epoch."""
        assert resolve_epochs(parse(flags), has_timer) == expected


class TestReport:
    def test_all_problems_at_once(self):
        """One error lists everything that is wrong."""
        with pytest.raises(ConfigError) as caught:
            parse(
                {"max_epochs": "x", "gpus": 1, "limit_val_batches": 7.5, "min_steps": 3, "max_steps": 2, "devices": 0}
            )
        assert len(caught.value.problems) == 5
        assert str(caught.value).startswith("5 problems:\n  1. Trainer(max_epochs='x'): ")

    def test_a_refused_flag_causes_no_second_problem(self):
        """A value that is refused is not held against other flags too."""
        assert (
            len(
                problems(barebones=True, log_every_n_steps="often", val_check_interval=-1, check_val_every_n_epoch=None)
            )
            == 2
        )

    def test_unknown_flags(self):
        """A misspelt flag is answered with the nearest name."""
        assert problems(max_epoch=3) == [
            "Trainer(max_epoch=3): the Trainer has no flag 'max_epoch'. Did you mean \"max_epochs\"?"
        ]
        assert "listed in the documentation" in problems(zzz=1)[0]

    @pytest.mark.parametrize("name", sorted(set(ADVICE) - set(OLD) - GIVEN))
    def test_old_flags(self, name):
        """A flag of older versions that has no translation is answered with what to write today."""
        (line,) = problems(**{name: 1})
        assert line == f"Trainer({name}=1): the Trainer has no flag {name!r}. {ADVICE[name]}"

    def test_advice_names_real_flags(self):
        """No flag of today is in the table of old ones."""
        assert not set(ADVICE) & {f.name for f in fields(TrainerConfig)}

    def test_long_values_are_cut(self):
        """A long or many-lined value does not drown the report."""

        class Loud:
            def __repr__(self):
                return "line\n" * 1000

        (line,) = problems(max_epochs=Loud())
        assert len(line) < 200
        assert "\n" not in line


class TestEnvironment:
    def test_a_variable_sets_a_flag(self, monkeypatch):
        """PL_TRAINER_<FLAG> gives a value as Python would read it, or a text."""
        monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "3")
        monkeypatch.setenv("PL_TRAINER_DEVICES", "0,1")
        monkeypatch.setenv("PL_TRAINER_PRECISION", "64-true")
        monkeypatch.setenv("PL_TRAINER_MAX_TIME", "00:01:00:00")
        monkeypatch.setenv("PL_TRAINER_LOGGER", "None")
        config = parse({})
        assert (config.max_epochs, config.devices, config.precision) == (3, (0, 1), "64-true")
        assert config.max_time == timedelta(hours=1)
        assert config.explicit == {"max_epochs", "devices", "precision", "max_time"}

    def test_arguments_win(self, monkeypatch):
        """What the code says wins over the environment, even a None or a wrong variable."""
        monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "3")
        monkeypatch.setenv("PL_TRAINER_DEVICES", "none")
        assert parse({"max_epochs": 5, "devices": 1}).max_epochs == 5
        assert parse({"max_epochs": None, "devices": 1}).max_epochs is None

    def test_a_wrong_variable_is_named(self, monkeypatch):
        """A problem says that its value came from the environment."""
        monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "many")
        monkeypatch.setenv("PL_TRAINER_BAREBONES", "True")
        assert problems(logger=True) == [
            "PL_TRAINER_MAX_EPOCHS='many': must be an integer of at least -1 (no limit).",
            "PL_TRAINER_BAREBONES='True', Trainer(logger=True): barebones turns logger off. Leave one of them out.",
        ]

    def test_an_unknown_variable_is_ignored_with_a_warning(self, monkeypatch):
        """A variable for no flag can be another program's: it is warned of."""
        monkeypatch.setenv("PL_TRAINER_MAX_EPOCH", "3")
        with pytest.warns(UserWarning, match='PL_TRAINER_MAX_EPOCH: .* Did you mean "max_epochs"?'):
            assert parse({}).max_epochs is None
