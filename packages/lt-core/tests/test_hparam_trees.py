"""Any tree of hyper-parameters comes back from a checkpoint as it was saved, of the same types."""

from __future__ import annotations

import dataclasses
import tempfile
from argparse import Namespace
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lt_core.checkpoint import save_checkpoint
from lt_core.model.hparams import checkpoint_entries
from lt_core.module import LightningModule


class Hue(Enum):
    """Colors."""

    RED = "red"
    BLUE = 2


class Word(str, Enum):
    """Words."""

    A = "a"
    B = "b"


class Size(IntEnum):
    """Sizes."""

    S = 1
    L = 2


class Spot(NamedTuple):
    """Named tuple of anything."""

    x: Any
    hue: Any = None


Old = namedtuple("Old", "left right")


@dataclass
class Box:
    """Dataclass of anything."""

    content: Any = None
    hue: Hue = Hue.RED
    maybe: Word | None = None


@dataclass(frozen=True)
class Lid:
    """Dataclass that does not change."""

    content: Any = None
    spots: tuple[Spot, ...] = ()


@dataclass
class Counted:
    """Dataclass with a method of its own that runs when it is made."""

    n: int = 0

    def __post_init__(self) -> None:
        self.n += 1


class Bare(LightningModule):
    """Module without annotations."""

    def __init__(self, a=None, b=None, **rest) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.save_hyperparameters()
        self.got = {"a": a, "b": b, **rest}


class Annotated(LightningModule):
    """Module with annotations."""

    def __init__(self, a: Box | Counted | None = None, b: dict[str, list[Hue]] | None = None, **rest: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.got = {"a": a, "b": b, **rest}


class Whole(LightningModule):
    """Module with one object for all values."""

    def __init__(self, config: Box) -> None:
        super().__init__()
        self.save_hyperparameters(config)
        self.got = {"a": config}


def again(model: Any) -> Any:
    """Return the module as a checkpoint of it gives it back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.ckpt")
        save_checkpoint({"state_dict": {}, **checkpoint_entries(model)}, path)
        return type(model).load_from_checkpoint(path)


def typed(value: Any) -> Any:
    """Return a value with the type of everything in it, for comparisons that 1, 1.0 and True do not fool."""
    kind = type(value)
    if dataclasses.is_dataclass(value) or isinstance(value, Namespace):
        return kind, [(key, typed(item)) for key, item in vars(value).items()]
    if isinstance(value, dict):
        return kind, [(typed(key), typed(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return kind, [typed(item) for item in value]
    if isinstance(value, set | frozenset):
        return kind, sorted(map(repr, map(typed, value)))
    if isinstance(value, torch.Tensor):
        return kind, value.dtype, value.tolist()
    return kind, repr(value)


ENUMS = st.sampled_from([*Hue, *Word, *Size])
PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3) | st.binary(max_size=3)
)
KEYS = st.text(max_size=3) | st.integers(0, 3) | ENUMS | st.tuples(st.integers(0, 1), ENUMS)
TREES = st.recursive(
    PLAIN | ENUMS | st.integers(0, 3).map(torch.arange),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict)
        | st.frozensets(PLAIN | ENUMS, max_size=3)
        | st.sets(ENUMS, max_size=3)
        | st.builds(Namespace, a=inner, b=inner)
        | st.builds(Spot, inner, inner)
        | st.builds(Old, inner, inner)
        | st.builds(Box, inner, st.sampled_from(Hue), st.none() | st.sampled_from(Word))
        | st.builds(Lid, content=inner, spots=st.lists(st.builds(Spot, inner, st.none()), max_size=2).map(tuple))
    ),
    max_leaves=8,
)
BOXES = st.builds(Box, TREES, st.sampled_from(Hue), st.none() | st.sampled_from(Word))
MODELS = (
    st.builds(Bare, TREES, TREES, more=TREES)
    | st.builds(
        Annotated,
        st.none() | BOXES | st.builds(Counted, st.integers()),
        st.none() | st.dictionaries(st.text(max_size=3), st.lists(st.sampled_from(Hue), max_size=2), max_size=2),
        other=TREES,
    )
    | st.builds(Whole, BOXES)
)
RULES = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=50, **RULES)  # type: ignore[arg-type]
@given(MODELS)
def test_every_tree_comes_back(model: Any) -> None:
    """Values of dataclasses, enums, named tuples and containers, in any nesting, come back equal and of their types."""
    assert typed(again(model).got) == typed(model.got)


@pytest.mark.slow
@settings(max_examples=500, **RULES)  # type: ignore[arg-type]
@given(MODELS)
def test_every_tree_comes_back_often(model: Any) -> None:
    """The same for many more trees."""
    assert typed(again(model).got) == typed(model.got)
