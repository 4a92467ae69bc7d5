"""Define the row of a flag, which serves as its parser, its documentation and its place in a signature.

A flag is one annotated field of a class such as `TrainerConfig`. Its annotation is the type that users may write and
that the trainer works with; where the two differ it is ``Parsed[written, resolved]``, which type checkers read as a
descriptor: ``__init__`` takes the one, the attribute is the other. None in the written type means that None may be
written: it stands for the default, or for itself where the resolved type holds None too.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

if TYPE_CHECKING:
    from lt_core.config.parsers import Parser

__all__ = ["UNTOUCHED", "Parsed", "Row", "flag", "page", "rows", "takes_flags"]

Written = TypeVar("Written")
Resolved = TypeVar("Resolved")
Owner = TypeVar("Owner")
P = ParamSpec("P")
Init = Callable[[Owner, dict[str, Any]], None]

UNTOUCHED: Any = object()
COUNTS = {"epoch": "from the next epoch", "step": "from the next step"}


class Parsed(Generic[Written, Resolved]):
    """Annotation of a flag that users write as one type and the trainer reads as another; it has no instances."""

    if TYPE_CHECKING:

        def __get__(self, owner: Any, kind: Any = None) -> Resolved: ...

        def __set__(self, owner: Any, value: Written) -> None: ...


@dataclass(frozen=True)
class Row:
    """Row of the table of flags.

    Attributes:
        name: The flag's name.
        takes: The type that users may write.
        keeps_none: Whether a None that is written stays None instead of meaning the default.
        default: The resolved value where nothing is written, or a function that returns it.
        parse: Returns the resolved value; its docstring begins with "Parse" and the range.
        doc: What the flag does: sentences for users.
        attribute: Whether the trainer holds it as a plain attribute.
        live: When a change of the trainer's attribute counts: ``"epoch"``, ``"step"``, or empty.
        barebones: The value under ``barebones``, which excludes all others; `UNTOUCHED` if it excludes none.
    """

    name: str
    takes: Any
    keeps_none: bool
    default: Any
    parse: Parser
    doc: str
    attribute: bool
    live: str
    barebones: Any

    @property
    def takes_none(self) -> bool:
        """Whether None may be written."""
        return _holds_none(self.takes)

    @property
    def parameter(self) -> inspect.Parameter:
        """The flag in a signature, with None as its default wherever None means the default."""
        default = None if self.takes_none and not self.keeps_none else self.default
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=self.takes)


def flag(
    default: Any, parse: Parser, doc: str, *, attribute: bool = False, live: str = "", barebones: Any = UNTOUCHED
) -> Any:
    """Return the field of one flag; the arguments are those of `Row`."""
    facts = {"parse": parse, "doc": doc, "attribute": attribute, "live": live, "barebones": barebones}
    if callable(default):
        return field(default_factory=default, metadata=facts)
    return field(default=default, metadata=facts)


def rows(config: type) -> Mapping[str, Row]:
    """Return the rows of a class of flags by name; fields that `flag` did not make are none."""
    types, table = get_type_hints(config), {}
    for one in fields(config):
        if "parse" in one.metadata:
            takes = becomes = types[one.name]
            if get_origin(takes) is Parsed:
                takes, becomes = get_args(takes)
            default = one.default_factory if callable(one.default_factory) else one.default
            table[one.name] = Row(one.name, takes, _holds_none(becomes), default, **one.metadata)
    return table


def takes_flags(config: Callable[P, Any]) -> Callable[[Init[Owner]], Callable[Concatenate[Owner, P], None]]:
    """Return a decorator that gives an ``__init__`` the flags of a class as its signature.

    The ``__init__`` itself gets what was written, by name. That holds no default that was left out, and it holds names
    that are no flags, so that they can be answered with the nearest one.
    """

    def decorate(init: Init[Owner]) -> Callable[Concatenate[Owner, P], None]:
        @wraps(init)
        def taking(self: Owner, /, **written: Any) -> None:
            init(self, written)

        table = rows(cast("type", config)).values()
        owner = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        described: Any = taking
        described.__signature__ = inspect.Signature([owner, *(row.parameter for row in table)], return_annotation=None)
        described.__annotations__ = {row.name: row.takes for row in table} | {"return": None}
        arguments = [f"    {row.name}: {row.doc}" for row in table]
        described.__doc__ = "\n".join([init.__doc__ or "", "", "Args:", *arguments])
        return cast("Callable[Concatenate[Owner, P], None]", taking)

    return decorate


def page(config: type) -> str:
    """Return the list of all flags in Markdown."""
    return "\n".join(_entry(row) for row in rows(config).values())


def _entry(row: Row) -> str:
    """Return one flag as a definition: its type and default, then what it does, takes and excludes."""
    kind = re.sub(r"\w+\.", "", inspect.formatannotation(row.takes))
    words = [row.doc, f"Takes {_range(row.parse)}."]
    if row.parameter.default is None and row.default is not None and not callable(row.default):
        words.append(f"None means `{row.default!r}`.")
    if row.live:
        words.append(f"A change of `trainer.{row.name}` counts {COUNTS[row.live]}.")
    if row.barebones is not UNTOUCHED:
        words.append(f"`barebones` makes it `{row.barebones!r}` and excludes all else.")
    return f"`{row.name}: {kind} = {row.parameter.default!r}`\n: {' '.join(words).replace('``', '`')}\n"


def _range(parse: Parser) -> str:
    return (parse.__doc__ or "").split("\n")[0].removeprefix("Parse ").rstrip(".")


def _holds_none(kind: Any) -> bool:
    return kind is type(None) or type(None) in get_args(kind)
