"""save_hyperparameters and hparams, in all their forms."""

from __future__ import annotations

import copy
import pickle
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from lt_core.datamodule import LightningDataModule
from lt_core.model.hparams import AttributeDict, checkpoint_entries, merged_hparams
from lt_core.module import LightningModule
from lt_interface.errors import ConfigTypeError, MisconfigurationException


class Base(LightningModule):
    def __init__(self, width: int = 4, *extra: Any, act: type = nn.ReLU, **rest: Any) -> None:
        super().__init__()
        self.save_hyperparameters()


class Child(Base):
    def __init__(self, depth: int, width: int = 8, **kwargs: Any) -> None:
        super().__init__(width * 2, **kwargs)


@dataclass
class Config:
    lr: float = 0.1
    layers: list[int] = field(default_factory=lambda: [1, 2])


def test_no_arguments_saves_all_of_init() -> None:
    """Without arguments every argument of __init__ is saved, defaults and **kwargs too, *args not."""
    model = Base(3, "x", dropout=0.5)
    assert model.hparams == {"width": 3, "act": nn.ReLU, "dropout": 0.5}
    assert model.hparams.width == 3
    assert model._log_hyperparams


def test_subclass_arguments_win() -> None:
    """A base class's call saves the subclass's arguments too, and those win."""
    model = Child(2, act=nn.GELU)
    assert model.hparams == {"depth": 2, "width": 8, "act": nn.GELU}
    assert Child(2).hparams == {"depth": 2, "width": 8, "act": nn.ReLU}


def test_other_objects_under_construction_are_not_mixed_in() -> None:
    """A module built inside another's __init__ saves only its own arguments."""

    class Outer(LightningModule):
        def __init__(self, width: int, size: int) -> None:
            super().__init__()
            self.inner = Base(7)

    assert Outer(1, 2).inner.hparams == {"width": 7, "act": nn.ReLU}
    assert Outer(1, 2).hparams == {}


def test_a_function_between_finds_init() -> None:
    """A call through a helper method still saves the arguments of __init__."""

    class Indirect(LightningModule):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.remember()

        def remember(self) -> None:
            self.save_hyperparameters()

    assert Indirect(5).hparams == {"width": 5}


def test_names_save_a_part() -> None:
    """Names save those arguments only; an unknown name is refused with the nearest."""

    class Some(LightningModule):
        def __init__(self, width: int, depth: int, *names: str) -> None:
            super().__init__()
            self.save_hyperparameters(*names)

    assert Some(1, 2, "depth").hparams == {"depth": 2}
    assert Some(1, 2, "depth", "width").hparams == {"depth": 2, "width": 1}
    with pytest.raises(ConfigTypeError, match=r"every name must be an argument of __init__\. Got 'widht'.*\"width\""):
        Some(1, 2, "widht")


@pytest.mark.parametrize("ignore", ["act", ["act", "unknown"]])
def test_ignore_leaves_out(ignore: Any) -> None:
    """Ignored names are left out, one or several."""

    class Some(LightningModule):
        def __init__(self, width: int, act: type = nn.ReLU) -> None:
            super().__init__()
            self.save_hyperparameters(ignore=ignore)

    assert Some(1).hparams == {"width": 1}
    assert Some(1).hparams_initial == {"width": 1}


@pytest.mark.parametrize("config", [{"lr": 0.1, "layers": [1, 2]}, Namespace(lr=0.1, layers=[1, 2]), Config()])
def test_one_object_holds_all(config: Any) -> None:
    """A dict, Namespace or dataclass gives its names and values, and the argument's name is kept."""

    class Whole(LightningModule):
        def __init__(self, conf: Any, other: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters(conf)

    model = Whole(config)
    assert model.hparams == {"lr": 0.1, "layers": [1, 2]}
    assert model.hparams.lr == 0.1
    entries = checkpoint_entries(model)
    assert entries == {"hparams_name": "conf", "hyper_parameters": {"lr": 0.1, "layers": [1, 2]}}
    assert type(entries["hyper_parameters"]) is dict


def test_vars_of_an_argument_is_that_argument() -> None:
    """The dict of an argument's attributes counts as the argument, a new dict as keyword arguments."""

    class Vars(LightningModule):
        def __init__(self, args: Namespace, fresh: bool) -> None:
            super().__init__()
            self.save_hyperparameters(dict(vars(args)) if fresh else vars(args))

    assert checkpoint_entries(Vars(Namespace(a=1), False))["hparams_name"] == "args"
    assert checkpoint_entries(Vars(Namespace(a=1), True))["hparams_name"] == "kwargs"


@pytest.mark.parametrize("value", [3, None, [1], int, torch.ones(1).shape])
def test_values_without_names_are_refused(value: Any) -> None:
    """A single value that holds no names is refused, saying what to write."""
    with pytest.raises(ConfigTypeError, match="a single object must hold names and values"):
        LightningModule().save_hyperparameters(value)


def test_calls_are_added_up() -> None:
    """Several calls merge, later values win."""

    class Twice(LightningModule):
        def __init__(self, width: int, depth: int) -> None:
            super().__init__()
            self.save_hyperparameters("width")
            self.save_hyperparameters({"depth": depth, "more": 1})
            self.save_hyperparameters({"width": 0}, logger=False)

    model = Twice(1, 2)
    assert model.hparams == {"width": 0, "depth": 2, "more": 1}
    assert model.hparams_initial == model.hparams
    assert not model._log_hyperparams


def test_dataclass_module() -> None:
    """A data module that is a dataclass saves its fields from __post_init__."""

    @dataclass
    class Data(LightningDataModule):
        batch_size: int = 8
        folder: str = "x"

        def __post_init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()

    data = Data(batch_size=3)
    assert data.hparams == {"batch_size": 3, "folder": "x"}
    assert checkpoint_entries(data, "datamodule_") == {
        "datamodule_hparams_name": "kwargs",
        "datamodule_hyper_parameters": {"batch_size": 3, "folder": "x"},
    }


def test_assignment_saves() -> None:
    """Assigning to self.hparams saves the values, as modules of the oldest style do."""

    class Old(LightningModule):
        def __init__(self, hparams: Any) -> None:
            super().__init__()
            self.hparams = hparams

    model = Old(Namespace(lr=1))
    assert model.hparams.lr == 1
    assert checkpoint_entries(model)["hparams_name"] == "hparams"


def test_initial_values_stay() -> None:
    """Saved values can be changed; hparams_initial stays, and what it returns is a copy."""
    config = {"lr": 0.1, "nested": {"a": [1]}}
    model = LightningModule()
    model.save_hyperparameters(config)
    model.hparams.lr = 5
    model.hparams["nested"]["a"].append(2)
    assert model.hparams_initial == {"lr": 0.1, "nested": {"a": [1]}}
    model.hparams_initial["lr"] = 7
    assert model.hparams_initial.lr == 0.1
    assert config["lr"] == 0.1


def test_remove_ignored_hparams() -> None:
    """Removed names are gone from both, unknown ones are passed over."""
    model = Base(3)
    model.remove_ignored_hparams(["act", "unknown"])
    assert model.hparams == model.hparams_initial == {"width": 3}
    LightningModule().remove_ignored_hparams(["a"])


class Awkward:
    """Object that refuses to be copied, compared or pickled."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("no")

    def __eq__(self, other: object) -> bool:
        raise TypeError("no")

    __hash__ = None  # type: ignore[assignment]


def test_objects_and_classes_never_fail() -> None:
    """Classes, functions and objects that cannot be copied or compared are saved all the same."""

    class Holds(LightningModule):
        def __init__(self, thing: Any, act: Any = nn.ReLU, fn: Any = len) -> None:
            super().__init__()
            self.save_hyperparameters()

    thing = Awkward()
    model = Holds(thing, fn=lambda: None)
    assert model.hparams.thing is thing
    assert model.hparams_initial.thing is thing
    with pytest.warns(
        UserWarning, match=r"Holds\.save_hyperparameters: a checkpoint keeps only the text of thing, act, fn"
    ):
        kept = checkpoint_entries(model)["hyper_parameters"]
    assert kept["act"] == {"$repr": repr(nn.ReLU)}
    assert checkpoint_entries(model)["hyper_parameters"] == kept  # warned once
    assert model.hparams.act is nn.ReLU
    assert merged_hparams(model)["thing"] is thing


def test_modules_warn() -> None:
    """A network among the hyper-parameters warns, saying how to leave it out."""

    class Wraps(LightningModule):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.save_hyperparameters()

    with pytest.warns(UserWarning, match=r"Wraps.save_hyperparameters: net is an nn.Module.*ignore=\['net'\]"):
        Wraps(nn.Linear(1, 1))


def test_nested_objects_become_plain() -> None:
    """Nested dataclasses keep attributes in a checkpoint and become dicts for loggers."""

    class Nested(LightningModule):
        def __init__(self, conf: Config, more: list[Any]) -> None:
            super().__init__()
            self.save_hyperparameters()

    model = Nested(Config(), [Namespace(a=Config(lr=1.0))])
    kept = checkpoint_entries(model)["hyper_parameters"]
    named = {"$class": f"{Config.__module__}:Config"}
    assert kept == {
        "conf": Namespace(lr=0.1, layers=[1, 2], **named),
        "more": [Namespace(a=Namespace(lr=1.0, layers=[1, 2], **named))],
    }
    assert merged_hparams(model)["conf"] == {"lr": 0.1, "layers": [1, 2]}
    assert isinstance(model.hparams.conf, Config)


def test_merging_for_loggers() -> None:
    """Loggers get both objects' values; a clash is refused, private keys and logger=False are left out."""
    model, data = LightningModule(), LightningDataModule()
    model.save_hyperparameters({"lr": 1, "same": torch.ones(2), "_class_path": "x"})
    data.save_hyperparameters({"batch": 2, "same": torch.ones(2)})
    assert set(merged_hparams(model, data)) == {"lr", "same", "batch"}
    assert set(merged_hparams(model)) == {"lr", "same"}
    data.save_hyperparameters({"lr": 2})
    with pytest.raises(MisconfigurationException, match=r"different values to lr \(1 and 2\)"):
        merged_hparams(model, data)
    data.save_hyperparameters({"lr": 2}, logger=False)
    assert set(merged_hparams(model, data)) == {"lr", "same"}


def test_no_hyper_parameters_leave_no_entries() -> None:
    """A module without hyper-parameters adds nothing to a checkpoint."""
    assert checkpoint_entries(LightningModule()) == {}
    assert LightningModule().hparams_initial == {}


def test_attribute_dict() -> None:
    """Items are attributes; an unknown one names the nearest; copies and pickles keep the type."""
    d = AttributeDict(width=1, z=2)
    d.depth = 3
    assert d["depth"] == d.depth == 3
    del d.z
    with pytest.raises(AttributeError, match=r'No hyper-parameter "widht"\. Did you mean "width"'):
        _ = d.widht
    with pytest.raises(AttributeError, match="nothing"):
        del d.nothing
    for twin in (copy.deepcopy(d), copy.copy(d), pickle.loads(pickle.dumps(d))):
        assert twin == d
        assert type(twin) is AttributeDict
    assert repr(d) == "depth: 3\nwidth: 1"
    assert copy.deepcopy(Base(3)).hparams == {"width": 3, "act": nn.ReLU}


class FakeOmegaConf:
    """Stand-in for omegaconf.OmegaConf."""

    class Dict(dict):  # type: ignore[type-arg]
        """Stand-in for DictConfig."""

    @classmethod
    def is_config(cls, value: Any) -> bool:
        return isinstance(value, cls.Dict)

    @staticmethod
    def to_container(value: Any, resolve: bool) -> Any:
        assert resolve
        return dict(value)


def test_omegaconf(monkeypatch: pytest.MonkeyPatch) -> None:
    """A config of OmegaConf stays one in hparams, and is stored as a plain dict with its type's name."""
    monkeypatch.setitem(__import__("sys").modules, "omegaconf", type("m", (), {"OmegaConf": FakeOmegaConf}))

    class Conf(LightningModule):
        def __init__(self, cfg: Any) -> None:
            super().__init__()
            self.save_hyperparameters(cfg, ignore="b")

    cfg = FakeOmegaConf.Dict(a=1, b=2)
    model = Conf(cfg)
    assert type(model.hparams) is FakeOmegaConf.Dict
    assert cfg == {"a": 1, "b": 2}
    entries = checkpoint_entries(model)
    assert entries == {"hparams_name": "cfg", "hyper_parameters": {"a": 1}, "hparams_type": "DictConfig"}


class ByHand(LightningModule):
    """Module that sets a hyper-parameter by hand before it saves the rest."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.hparams["depth"] = 2
        self.save_hyperparameters()


def test_what_is_set_by_hand_before_the_first_save_is_kept() -> None:
    """Loggers and checkpoints get the values of save_hyperparameters and those that were set before it."""
    module = ByHand()
    assert dict(module.hparams) == dict(module.hparams_initial) == merged_hparams(module) == {"depth": 2, "width": 3}
    entries = checkpoint_entries(module)
    assert (entries["hparams_name"], entries["hyper_parameters"]) == ("kwargs", {"depth": 2, "width": 3})
    module.hparams["depth"] = 5
    assert module.hparams_initial["depth"] == 2
