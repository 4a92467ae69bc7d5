"""Types of hyper-parameters that live in a module of their own, as a project's settings do."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass, field
from enum import Enum, Flag, IntEnum, IntFlag
from typing import Any, NamedTuple


class Color(Enum):
    """Enum of strings."""

    RED = "red"
    BLUE = "blue"
    CRIMSON = "red"  # noqa: PIE796 - an alias


class Act(str, Enum):
    """Enum whose members are strings."""

    RELU = "relu"
    GELU = "gelu"


class Level(IntEnum):
    """Enum whose members are numbers."""

    LOW = 1
    HIGH = 2


class Parts(Flag):
    """Flags that can be combined."""

    HEAD = 1
    BODY = 2


class Bits(IntFlag):
    """Flags that are numbers."""

    ONE = 1
    TWO = 2


class Odd(Enum):
    """Enum of values that no file keeps."""

    THING = object()


class Outer:
    """Class that holds another."""

    class Inner(Enum):
        """Enum in a class."""

        A = 1


Pair = namedtuple("Pair", "x y")


class Point(NamedTuple):
    """Named tuple with a default."""

    x: int
    color: Color = Color.RED


@dataclass(frozen=True)
class Fixed:
    """Dataclass that does not change."""

    width: int = 1
    color: Color = Color.RED


@dataclass
class Derived:
    """Dataclass that computes when it is made."""

    width: int = 1
    twice: int = field(init=False)

    def __post_init__(self) -> None:
        self.width += 1
        self.twice = self.width * 2


@dataclass
class Deep:
    """Dataclass of all the others."""

    point: Point
    colors: list[Color]
    fixed: dict[str, Fixed]
    maybe: Color | None = None
    keys: dict[Color, int] = field(default_factory=dict)
    derived: Derived | None = None
    any: Any = None


@dataclass(frozen=True)
class Wider(Fixed):
    """Dataclass that derives from one that an annotation names."""

    depth: int = 2
