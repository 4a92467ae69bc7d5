"""The table of flags: one row says all that is known of a flag, and everything else is derived from it."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

import pytest

from lt_core import Callback, Trainer
from lt_core.config.flags import FLAGS, TrainerConfig, parse
from lt_core.config.parsers import whole
from lt_core.config.row import UNTOUCHED, flag, page, rows, takes_flags
from lt_interface import Accelerator, ConfigError, ConfigTypeError, Launcher, Precision, Profiler, Strategy
from lt_interface.logger import SupportsLogging

QUIET: dict[str, Any] = {
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
}


@pytest.fixture(autouse=True)
def _no_flags_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("PL_TRAINER_"):
            monkeypatch.delenv(name)


@dataclass(frozen=True, kw_only=True)
class Louder(TrainerConfig):
    """The flags of a trainer and one more."""

    loudness: int = flag(3, whole(1), "How loud it is.", attribute=True, live="epoch", barebones=1)


def test_a_new_row_is_all_that_a_new_flag_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more row is parsed, refused, suggested, read from the environment, shown, and in the signature."""
    assert parse({}, Louder).loudness == 3  # type: ignore[attr-defined]
    assert parse({"loudness": 5}, Louder).loudness == 5  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"Trainer\(loudness=0\): must be an integer of at least 1"):
        parse({"loudness": 0}, Louder)
    with pytest.raises(ConfigTypeError, match='Did you mean "loudness"'):
        parse({"loudnes": 4}, Louder)
    with pytest.raises(ConfigError, match="barebones turns loudness off"):
        parse({"loudness": 4, "barebones": True}, Louder)
    monkeypatch.setenv("PL_TRAINER_LOUDNESS", "7")
    assert parse({}, Louder).loudness == 7  # type: ignore[attr-defined]
    with pytest.raises(ConfigTypeError, match="no flag 'loudness'"):
        parse({"loudness": 4})
    assert "`loudness: int = 3`\n: How loud it is. Takes an integer of at least 1." in page(Louder)

    class Loud:
        @takes_flags(Louder)
        def __init__(self, written: dict[str, Any]) -> None:
            """Begin."""

    assert inspect.signature(Loud).parameters["loudness"].annotation is int


def test_the_trainer_takes_its_attributes_and_what_it_compares_from_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is a live attribute is on the trainer, and a change of it is seen at an epoch's start."""
    monkeypatch.setattr("lt_core.trainer.trainer.FLAGS", rows(Louder))
    monkeypatch.setattr("lt_core.trainer.trainer.parse", lambda written, **more: parse(written, Louder, **more))
    trainer: Any = Trainer(**QUIET)
    assert trainer.loudness == 3
    before = trainer._changeable()
    trainer.loudness = 4
    assert trainer._changeable() != before


def test_every_flag_has_all_that_a_user_asks() -> None:
    """Each field is a flag with a type, a range, sentences that end, and a default of its type."""
    assert list(FLAGS) == [f.name for f in fields(TrainerConfig) if f.name != "explicit"]
    for name, row in FLAGS.items():
        assert row.doc.endswith("."), name
        assert (row.parse.__doc__ or "").startswith("Parse "), name
        assert row.takes is not Any, name
        assert Any not in get_args(row.takes), name


def test_the_signature_is_that_of_the_rows() -> None:
    """The signature of the Trainer has the names, types and defaults of the rows, all of them keywords."""
    parameters = inspect.signature(Trainer).parameters
    assert list(parameters) == list(FLAGS)
    assert {n: p.annotation for n, p in parameters.items()} == {n: row.takes for n, row in FLAGS.items()}
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert parameters["accumulate_grad_batches"].default == 1
    assert parameters["check_val_every_n_epoch"].default == 1
    assert parameters["precision"].default is None


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("accelerator", Accelerator),
        ("strategy", Strategy),
        ("precision", Precision),
        ("profiler", Profiler),
        ("launcher", Launcher),
        ("logger", SupportsLogging),
        ("plugins", Precision),
    ],
)
def test_types_name_the_protocols_and_can_be_read_at_run_time(name: str, protocol: type) -> None:
    """get_type_hints resolves the whole signature, and what takes a part names its protocol."""
    hints = get_type_hints(Trainer.__init__)
    assert set(hints) == {*FLAGS, "return"}
    assert protocol in get_args(hints[name])


def test_a_misspelt_flag_is_met_by_the_nearest_name_beside_all_other_problems() -> None:
    """A name that the signature lacks is collected with every other problem, not refused alone by Python."""
    wrong: dict[str, Any] = {"max_epoch": 3, "num_nodes": 0}
    with pytest.raises(ConfigTypeError, match='Did you mean "max_epochs"') as caught:
        Trainer(**wrong)
    assert len(caught.value.problems) == 2
    with pytest.raises(TypeError, match="positional"):
        Trainer("cpu")  # type: ignore[misc]


def test_a_default_that_is_written_out_takes_precedence_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment fills in what the code leaves out, not what it says, be it the default."""
    monkeypatch.setenv("PL_TRAINER_ACCUMULATE_GRAD_BATCHES", "4")
    assert Trainer(**QUIET).accumulate_grad_batches == 4
    assert Trainer(**QUIET, accumulate_grad_batches=1).accumulate_grad_batches == 1


@pytest.mark.parametrize("name", [name for name, row in FLAGS.items() if not row.takes_none])
def test_none_is_refused_where_the_type_lacks_it(name: str) -> None:
    """A flag whose type has no None takes none."""
    with pytest.raises(ConfigTypeError):
        parse({name: None})


def test_barebones_is_said_in_the_rows() -> None:
    """What barebones turns off is what the rows say, and parsing gives those values."""
    off = {name: row.barebones for name, row in FLAGS.items() if row.barebones is not UNTOUCHED}
    config = parse({"barebones": True})
    assert {name: getattr(config, name) for name in off} == off
    assert {"logger", "enable_progress_bar", "profiler"} <= set(off)


@pytest.mark.parametrize("name", [name for name, row in FLAGS.items() if row.takes_none])
def test_none_stands_for_the_default_or_for_itself(name: str) -> None:
    """Where the type holds None it may be written: it is the default, but for the cadence that it turns off."""
    config, row = parse({name: None, "val_check_interval": 3}), FLAGS[name]
    if name == "check_val_every_n_epoch":
        assert (config.check_val_every_n_epoch, row.default) == (None, 1)
    elif name != "val_check_interval":
        assert getattr(config, name) == (row.default() if callable(row.default) else row.default)
        assert name not in config.explicit


def test_the_defaults_of_the_signature_change_nothing_when_written_out() -> None:
    """A program that reads the signature and passes every default on gets the trainer that it would get without."""
    defaults: dict[str, Any] = {name: p.default for name, p in inspect.signature(Trainer).parameters.items()}
    written, left_out = Trainer(**defaults | QUIET)._config, Trainer(**QUIET)._config
    assert {n: getattr(written, n) for n in FLAGS} == {n: getattr(left_out, n) for n in FLAGS}


@pytest.mark.parametrize("name", [name for name, row in FLAGS.items() if row.attribute or row.live])
def test_a_change_is_seen_at_an_epoch_s_start_where_the_row_says_so(name: str) -> None:
    """Of what users may change on the trainer, the comparison at an epoch's start sees just the rows live by epoch."""
    trainer: Any = Trainer(**QUIET)
    before = trainer._changeable()
    setattr(trainer, name, [Callback()] if name == "callbacks" else 17)
    assert (trainer._changeable() != before) is (FLAGS[name].live == "epoch")


def test_what_the_plan_and_the_hooks_are_made_of_is_live() -> None:
    """The flags that a run builds its plan and hooks of are compared at each epoch's start."""
    plan = {"accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "detect_anomaly", "callbacks"}
    assert plan == {name for name, row in FLAGS.items() if row.live == "epoch"}


@pytest.mark.parametrize("name", [name for name, row in FLAGS.items() if row.live == "step"])
def test_a_change_that_counts_from_the_next_step_calls_the_loop(name: str) -> None:
    """Setting such a flag on the trainer calls the loop's attention, and is read back."""
    trainer: Any = Trainer(**QUIET)
    called: list[int] = []
    trainer._call_attention = lambda: called.append(1)
    setattr(trainer, name, 17)
    assert (getattr(trainer, name), called) == (17, [1])


def test_attributes_hold_the_resolved_values() -> None:
    """Each row that is an attribute is on the trainer as it was resolved."""
    trainer = Trainer(**QUIET, limit_val_batches=3, num_sanity_val_steps=-1, gradient_clip_algorithm="Value")
    for name, row in FLAGS.items():
        if row.attribute:
            assert vars(trainer)[name] == getattr(trainer._config, name), name


def test_a_subclass_may_have_flags_of_its_own() -> None:
    """A trainer of the user's own passes on what it does not take itself."""

    class Mine(Trainer):
        def __init__(self, shout: bool, **flags: Any) -> None:
            super().__init__(**flags)
            self.shout = shout

    trainer = Mine(True, **QUIET, min_steps=3)
    assert (trainer.shout, trainer.min_steps) == (True, 3)
