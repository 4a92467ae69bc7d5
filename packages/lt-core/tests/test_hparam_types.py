"""Hyper-parameters of the user's own types: enums, flags, named tuples, dataclasses, at any depth."""

from __future__ import annotations

import io
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, replace
from enum import Enum
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Optional

import hparam_kinds as kinds
import pytest
from hparam_kinds import Act, Bits, Color, Deep, Derived, Fixed, Level, Odd, Pair, Parts, Point, Wider

from lt_core.checkpoint import load_checkpoint, save_checkpoint
from lt_core.datamodule import LightningDataModule
from lt_core.model.hparams import checkpoint_entries, merged_hparams
from lt_core.module import LightningModule
from lt_interface.errors import CheckpointError

if TYPE_CHECKING:
    from nowhere import Ghost  # type: ignore[import-not-found]

pytestmark = pytest.mark.filterwarnings("ignore:.*checkpoint keeps only the text")


class Bare(LightningModule):
    """Module whose argument has no annotation, beside one that cannot be resolved."""

    def __init__(self, v=None, ghost: Ghost = None) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.save_hyperparameters()
        self.v = v


def again(module: LightningModule, path: Path, cls: Any = None, **given: Any) -> Any:
    """Save a module as the trainer does, and load it."""
    save_checkpoint({"state_dict": module.state_dict(), **checkpoint_entries(module)}, path)
    return (cls or type(module)).load_from_checkpoint(path, **given)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.ckpt"


VALUES = {
    "enum": Color.RED,
    "alias": Color.CRIMSON,
    "text": Act.GELU,
    "number": Level.HIGH,
    "flags": Parts.HEAD | Parts.BODY,
    "no flag": Parts(0),
    "number flags": Bits.ONE | Bits.TWO,
    "unnamed flags": Bits(9),
    "object": Odd.THING,
    "in a class": kinds.Outer.Inner.A,
    "pair": Pair(1, [2]),
    "point": Point(1, Color.BLUE),
    "pairs": Pair(Pair(1, Color.RED), (Point(3),)),
    "fixed": Fixed(3, Color.BLUE),
    "wider": Wider(3, Color.BLUE, 7),
    "deep": Deep(Point(1), [Color.RED, Color.BLUE], {"a": Fixed(2)}, Color.RED, {Color.BLUE: 1}, None, Level.LOW),
    "keys": {Color.RED: {Act.RELU: Level.LOW}},
    "set": {Color.RED, Color.BLUE},
    "frozenset": frozenset({Level.LOW}),
    "ordered": OrderedDict([(Color.RED, Point(2))]),
    "defaultdict": defaultdict(list, {"a": [Color.RED]}),
    "counter": Counter([Color.RED, Color.RED]),
    "deque": deque([Color.RED], 5),
    "tuple": (Color.RED, (Point(1),)),
    "namespace": Namespace(c=Color.RED, p=[Fixed()]),
    "simple namespace": SimpleNamespace(c=Color.RED),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_without_annotation(file: Path, name: str) -> None:
    """A value whose class the module's own file can name comes back as it was, equal and of the same types."""
    value = VALUES[name]
    loaded = again(Bare(value), file).v
    assert repr(loaded) == repr(value)
    assert loaded == value
    assert type(loaded) is type(value)


def annotated(annotation: Any) -> Any:
    """Return a class whose file cannot name any type but by this annotation."""
    space: dict[str, Any] = {"LightningModule": LightningModule, "annotation": annotation, "__name__": "elsewhere"}
    lines = [
        "class Lone(LightningModule):",
        "    def __init__(self, v: annotation = None, ghost: 'Ghost' = None) -> None:",
        "        super().__init__()",
        "        self.save_hyperparameters()",
        "        self.v = v",
    ]
    exec("\n".join(lines), space)
    return space["Lone"]


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Color, Color.RED),
        (Optional[Color], Color.RED),  # noqa: UP045 - the old form
        (Color | None, None),
        (str | Act, Act.GELU),
        (list[Color], [Color.RED, Color.BLUE]),
        (dict[Color, list[Level]], {Color.RED: [Level.LOW]}),
        (tuple[int, Color], (1, Color.RED)),
        (tuple[Color, ...], (Color.RED,)),
        (Point, Point(1, Color.BLUE)),
        (Optional[list[Point]], [Point(2)]),  # noqa: UP045
        (Fixed, Fixed(3)),
        (Fixed, Wider(3, Color.BLUE, 9)),
        (Point | Fixed | Derived, Fixed(7)),
        (dict[str, Fixed], {"a": Fixed(2)}),
        (Derived, Derived(4)),
        (Deep, Deep(Point(1), [Color.RED], {"a": Fixed(2)}, None, {Color.BLUE: 1}, Derived(2), [Parts.HEAD, Act.RELU])),
    ],
)
def test_annotations_name_the_types(file: Path, annotation: Any, value: Any) -> None:
    """Values come back by the annotation alone, nested ones by the annotations of the dataclasses in it."""
    cls = annotated(annotation)
    if "any" in getattr(value, "__dict__", {}):
        value = replace(value, any=None)  # no annotation names what is in it
    loaded = again(cls(value), file).v
    assert repr(loaded) == repr(value)
    assert type(loaded) is type(value)


def test_a_type_that_nothing_names_is_asked_for(file: Path) -> None:
    """What cannot be given back is one error with its path, unless it is given; a text or number stays one."""
    cls = annotated(Any)
    with pytest.raises(
        CheckpointError, match=r"Got v\[0\] \(Color.RED, whose class no annotation.*Give them: .*v=\.\.\."
    ):
        again(cls([Color.RED]), file)
    with pytest.raises(CheckpointError, match=r"v\.a \(Point.*whose class no annotation"):
        again(cls({"a": Point(1)}), file)
    assert again(cls([Color.RED]), file, v=3).v == 3
    assert again(cls([Act.GELU, Level.HIGH]), file).v == ["gelu", 2]
    assert again(cls(Derived(2)), file).v == Namespace(width=3, twice=6)


class Colour(Enum):
    """Color by another name."""

    RED = "r"


@dataclass
class Solid:
    """Fixed by another name, with a new field."""

    width: int
    color: Colour
    new: int = 5


def test_a_renamed_type_comes_back_by_the_annotation(file: Path) -> None:
    """The annotated type takes the value of another one if it can; else the other one stays."""
    assert again(Bare(Fixed(3, Color.RED)), file, annotated(Solid)).v == Solid(3, Colour.RED, 5)
    assert again(Bare([Color.RED]), file, annotated(list[Colour])).v == [Colour.RED]
    assert again(Bare(Point(1)), file, annotated(Pair | Fixed)).v == Point(1)


def test_what_a_type_refuses_is_one_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that is gone and a class that raises are reported together, with the keywords to give."""

    class Both(LightningModule):
        def __init__(self, a: Colour, b: Picky) -> None:
            super().__init__()

    entries = checkpoint_entries(Bare(Picky(1)))
    kept = entries["hyper_parameters"]
    kept |= {"a": ("$enum", "elsewhere:Gone", "GREEN", None), "b": kept.pop("v")}
    save_checkpoint({"state_dict": {}, **entries}, file)
    monkeypatch.setattr(Picky, "refuses", True)
    with pytest.raises(CheckpointError) as error:
        Both.load_from_checkpoint(file)
    assert "Got a (ValueError: Colour has no member GREEN); b (ValueError: no width). " in str(error.value)
    assert str(error.value).endswith("Give them: load_from_checkpoint(path, a=..., b=...).")


@dataclass
class Picky:
    """Dataclass that may refuse its values."""

    width: int

    refuses = False

    def __post_init__(self) -> None:
        if self.refuses:
            raise ValueError("no width")


class Armed(Enum):
    """Enum that would call for help if it were called."""

    ONE = 1

    @classmethod
    def _missing_(cls, value: object) -> Any:
        raise AssertionError("called")


def test_nothing_that_a_file_names_is_called(file: Path) -> None:
    """A name found in a module neither imports nor calls: dataclasses that compute stay namespaces there."""
    assert again(Bare(Derived(3)), file).v == Namespace(width=4, twice=8)
    entries = checkpoint_entries(Bare())
    entries["hyper_parameters"] = {"v": ("$enum", "os:system", "echo", None)}
    save_checkpoint({"state_dict": {}, **entries}, file)
    with pytest.raises(CheckpointError, match="no annotation"):
        Bare.load_from_checkpoint(file)
    assert again(Bare(Armed.ONE), file).v is Armed.ONE


def test_annotations_of_a_base_class_and_behind_a_decorator_count(file: Path) -> None:
    """A subclass that passes arguments on, and an __init__ in a wrapper, know the types of the inner one."""
    base = annotated(Color)

    class Child(base):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    assert again(Child(v=Color.RED), file).v is Color.RED

    def decorated(function: Any) -> Any:
        @wraps(function)
        def inner(*args: Any, **kwargs: Any) -> None:
            function(*args, **kwargs)

        return inner

    wrapped = annotated(list[Point])
    wrapped.__init__ = decorated(wrapped.__init__)
    assert again(wrapped(v=[Point(1)]), file).v == [Point(1)]


def test_data_modules_and_whole_configs_have_types_too(file: Path) -> None:
    """An enum in a data module's arguments, and in a dataclass that holds all arguments, comes back."""

    class Data(LightningDataModule):
        def __init__(self, split: Color, at=Level.LOW) -> None:  # type: ignore[no-untyped-def]
            super().__init__()
            self.save_hyperparameters()

    Data.__init__.__annotations__["split"] = Color
    save_checkpoint({"state_dict": {}, **checkpoint_entries(Data(Color.BLUE, Level.HIGH), "datamodule_")}, file)
    assert Data.load_from_checkpoint(file).hparams == {"split": Color.BLUE, "at": Level.HIGH}

    class Whole(LightningModule):
        def __init__(self, conf: Fixed) -> None:
            super().__init__()
            self.save_hyperparameters(conf)
            self.conf = conf

    assert again(Whole(Fixed(2, Color.BLUE)), file).conf == Fixed(2, Color.BLUE)
    assert again(Whole(Fixed(2, Color.BLUE)), file, color=Color.RED).conf == Fixed(2, Color.RED)


def test_what_holds_itself_is_cut(file: Path) -> None:
    """A dict, list, namespace or dataclass that holds itself is saved up to there, and asked for on loading."""
    loop: dict[str, Any] = {"a": 1}
    loop["me"] = loop
    items: list[Any] = [1]
    items.append({"up": items})
    space = Namespace(a=1)
    space.me = space
    deep = Deep(Point(1), [], {})
    deep.any = deep
    for value, path in ((loop, r"v\.me"), (items, r"v\[1\]\.up"), (space, r"v\.me"), (deep, r"v\.any")):
        model = Bare(value)
        assert model.hparams.v is value
        assert merged_hparams(model)
        with pytest.raises(CheckpointError, match=path):
            again(model, file)
        assert again(model, file, v=1).v == 1
    assert Bare(loop).hparams_initial["v"]["me"]["me"]["a"] == 1
    repr(Bare(loop).hparams)


def test_files_and_objects_are_left_out_with_one_line(file: Path) -> None:
    """Open files and objects at any depth never stop a save; one warning names their paths and the way to give them."""
    model = Bare({"log": io.StringIO(), "acts": [len], "width": 3})
    with (
        pytest.warns(
            UserWarning, match=r"only the text of v\.log, v\.acts\[0\]\. Give them to load_from_check"
        ) as given,
        pytest.raises(CheckpointError, match=r"v\.log.*v\.acts\[0\]"),
    ):
        again(model, file)
    assert len(given) == 1
    assert load_checkpoint(file)["hyper_parameters"]["v"]["width"] == 3


class Open(LightningModule):
    """Module with one argument for all values, and any others."""

    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__()
        self.save_hyperparameters(config)
        self.config, self.kwargs = config, kwargs


def test_given_arguments_reach_kwargs_beside_a_config(file: Path) -> None:
    """What load_from_checkpoint is given goes to **kwargs without a warning; a saved name changes the config, too."""
    loaded = again(Open({"lr": 1}), file, extra=5)
    assert (dict(loaded.config), loaded.kwargs) == ({"lr": 1}, {"extra": 5})
    loaded = again(Open({"lr": 1}), file, lr=2)
    assert (dict(loaded.config), loaded.kwargs) == ({"lr": 2}, {"lr": 2})


class Strict(LightningModule):
    """Module with arguments that have a place and no name."""

    def __init__(self, a: int, b: int = 2, /, c: int = 3, *, d: int = 4, **kwargs: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.got = (a, b, c, d, kwargs)


def test_positional_only_arguments_are_given_by_place(file: Path) -> None:
    """Saved and given values reach arguments that cannot be named, beside those that can."""
    assert again(Strict(1, 5, d=9, q=8), file).got == (1, 5, 3, 9, {"q": 8})
    assert again(Strict(1, 5, d=9), file, b=7, c=1).got == (1, 7, 1, 9, {})
    model = Strict(1, 5)
    model.remove_ignored_hparams(["b"])
    assert again(model, file).got == (1, 2, 3, 4, {})
    model.remove_ignored_hparams(["a"])
    with pytest.raises(CheckpointError, match="Got none for a"):
        again(model, file)


def test_an_open_file_is_read(file: Path) -> None:
    """load_from_checkpoint takes a binary file or a buffer in place of a path, and errors name it."""
    again(Bare(Color.RED), file)
    with file.open("rb") as opened:
        assert Bare.load_from_checkpoint(opened).v is Color.RED
    assert Bare.load_from_checkpoint(io.BytesIO(file.read_bytes())).v is Color.RED
    again(Bare(len), file, v=1)
    with file.open("rb") as opened, pytest.raises(CheckpointError, match=r"load_from_checkpoint\('.*model\.ckpt'\)"):
        Bare.load_from_checkpoint(opened)
