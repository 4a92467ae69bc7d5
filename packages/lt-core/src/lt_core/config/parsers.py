"""Turn what a user wrote for one flag into the value that the trainer works with.

Each parser takes one value and returns the resolved one, or raises `FlagError` with the rule
that it breaks. Parsers know nothing of other flags.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from datetime import timedelta
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from lt_interface import registry as plugins
from lt_interface.errors import Problem, nearest
from lt_interface.paths import path_problem

if TYPE_CHECKING:
    from lt_interface.registry import Registry

__all__ = ["FlagError", "Parser", "batch_limit", "choice", "clip_value", "devices", "duration", "fast_dev_run"]
__all__ += ["folder", "loggers", "objects", "plugin", "precision_name", "provides", "switch", "time_span"]
__all__ += ["val_check_interval", "whole"]

Parser = Callable[[Any], Any]

ACCELERATOR_METHODS = ("is_available", "parse_devices", "device", "setup")
STRATEGY_METHODS = ("setup", "shard", "engine", "leave")
PRECISION_METHODS = ("convert", "convert_batch", "scale", "step")
LAUNCHER_METHODS = ("launch",)
PROFILER_METHODS = ("start", "stop", "profile")
LOGGER_METHODS = ("log_metrics",)

_TIME_PARTS = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds")
_OWN_WORD = re.compile(r"\s*[A-Za-z]+-[\w:/.-]+\s*", re.ASCII)
_CLOCK = re.compile(r"(?P<days>\d+):(?P<hours>\d{1,2}):(?P<minutes>\d{1,2}):(?P<seconds>\d{1,2})", re.ASCII)


class FlagError(Exception):
    """Error of a value: the rule that it breaks, and what to write instead.

    Args:
        rule: What must hold, without the closing stop.
        fix: A whole sentence that says what to write.
        is_type: Whether the value's type is at fault.
    """

    def __init__(self, rule: str, fix: str = "", *, is_type: bool = False) -> None:
        super().__init__(rule)
        self.rule, self.fix, self.is_type = rule, fix, is_type

    def problem(self, where: str) -> Problem:
        """Return the problem as one of a report."""
        return Problem(where, self.rule, fix=self.fix, is_type=self.is_type)


def is_whole(value: object) -> bool:
    """Return whether a value is an integer of Python or numpy, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Return whether a value is a real number of Python or numpy, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_bool(value: object) -> bool:
    """Return whether a value is a bool of Python or numpy (which is not imported for this)."""
    return isinstance(value, bool) or (type(value).__module__ == "numpy" and type(value).__name__ in {"bool", "bool_"})


def provides(value: object, methods: Iterable[str]) -> bool:
    """Return whether an instance's class defines all these methods; no property is evaluated."""
    return not isinstance(value, type) and not _lacking(type(value), methods)


def _lacking(kind: type, methods: Iterable[str]) -> list[str]:
    """Return which methods a class has not, or only as the empty ones of a protocol that it is derived from."""
    owners = {m: next((k for k in kind.__mro__ if m in vars(k)), None) for m in methods}
    return [m for m, k in owners.items() if not callable(getattr(kind, m, None)) or getattr(k, "_is_protocol", False)]


def whole(low: int, *, off: str = "", lowest: Any = None) -> Parser:
    """Return a parser for an integer of at least ``low``; ``off`` names what ``low`` means, ``lowest`` is its value."""
    bound = f"must be an integer of at least {low}" + (f" ({off})" if off else "")

    def parse(value: Any) -> Any:
        if is_whole(value):
            if value >= low:
                return lowest if value == low and lowest is not None else int(value)
            raise FlagError(bound)
        fix = _number_fix(value)
        if is_bool(value):
            fix = f"Write {int(value)} if a number is meant."
        elif isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value.strip(), re.ASCII):
            fix = f"Write {int(value)}, without quotes."
        elif value is None and low == -1:
            fix = "Write -1 for no limit."
        raise FlagError(bound, fix, is_type=True)

    parse.__doc__ = bound.replace("must be", "Parse") + "."
    return parse


def _number_fix(value: Any) -> str:
    is_one = is_number(value) and math.isfinite(value) and value == int(value)
    return f"Write {int(value)}." if is_one else ""


def switch(value: Any) -> bool:
    """Parse True or False.

    A text or a number is refused, because ``"False"`` would count as true.
    """
    if is_bool(value):
        return bool(value)
    fix = ""
    text = str(value).strip().lower()
    if text in {"1", "true", "yes", "on"}:
        fix = "Write True."
    elif text in {"0", "false", "no", "off", "none"}:
        fix = "Write False."
    raise FlagError("must be True or False", fix, is_type=True)


def choice(*allowed: Any) -> Parser:
    """Return a parser for one of a few values; texts are taken in any case."""
    shown = " or ".join(repr(a) for a in allowed)

    def parse(value: Any) -> Any:
        if isinstance(value, str):
            if value.lower() in allowed:
                return value.lower()
            raise FlagError(f"must be {shown}", nearest(value, [a for a in allowed if isinstance(a, str)]))
        if is_bool(value) and any(bool(value) is a for a in allowed):
            return bool(value)
        raise FlagError(f"must be {shown}", is_type=True)

    parse.__doc__ = f"Parse {shown}."
    return parse


def batch_limit(value: Any) -> int | float:
    """Parse a number of batches (an integer) or a fraction of them (a float from 0 to 1)."""
    rule = "must be a number of batches (integer) or a fraction of them (float from 0.0 to 1.0)"
    if is_whole(value):
        if value >= 0:
            return int(value)
        raise FlagError(rule, "Write 0 for none and 1.0 for all.")
    if is_number(value):
        number = float(value)
        if 0.0 <= number <= 1.0:
            return number
        counts = number > 1.0 and number.is_integer()
        raise FlagError(rule, f"Write {int(number)} for {int(number)} batches." if counts else "Write 1.0 for all.")
    fix = f"Write {'1.0 for all' if value else '0 for none'}." if is_bool(value) else ""
    raise FlagError(rule, fix, is_type=True)


def fast_dev_run(value: Any) -> bool | int:
    """Parse True, False or a number of batches; 1 is True and 0 is False."""
    if is_bool(value):
        return bool(value)
    if not is_whole(value):
        raise FlagError("must be True, False or a number of batches (integer)", is_type=True)
    if value < 0:
        raise FlagError("must be True, False or a number of batches, at least 0")
    return bool(value) if value in (0, 1) else int(value)


def clip_value(value: Any) -> int | float:
    """Parse a number that is not nan; 0 and less mean no clipping."""
    if not is_number(value):
        raise FlagError("must be a number, or None for no clipping", is_type=True)
    number = int(value) if is_whole(value) else float(value)
    if math.isnan(number):
        raise FlagError("must be a number, or None for no clipping")
    return number


def duration(value: Any) -> timedelta:
    """Parse a time span: ``"DD:HH:MM:SS"``, a timedelta, or a dict of its arguments.

    Raises:
        FlagError: If it is none of these or not longer than nothing.
    """
    span = time_span(value)
    if span <= timedelta(0):
        raise FlagError("must be a time longer than nothing")
    return span


def time_span(value: Any) -> timedelta:
    """Parse what `duration` does, of any length.

    Raises:
        FlagError: If it is no time.
    """
    rule = 'must be a time: "DD:HH:MM:SS", a timedelta, or a dict such as {"hours": 2}'
    try:
        if isinstance(value, timedelta):
            return value
        if isinstance(value, str):
            found = _CLOCK.fullmatch(value.strip())
            if found is None:
                raise FlagError(rule, _clock_fix(value))
            return timedelta(**{unit: int(part) for unit, part in found.groupdict().items()})
        if isinstance(value, Mapping):
            return _span_of_parts(value)
    except (OverflowError, ValueError) as error:
        raise FlagError("must be a time that a timedelta can hold", f"{error}.") from None
    fix = f'Write {{"seconds": {value}}} if seconds are meant.' if is_number(value) else ""
    raise FlagError(rule, fix, is_type=True)


def _span_of_parts(value: Mapping[Any, Any]) -> timedelta:
    for key, part in value.items():
        if key not in _TIME_PARTS:
            rule = f"{key!r} is no unit of time; known are {', '.join(_TIME_PARTS)}"
            raise FlagError(rule, nearest(key, _TIME_PARTS))
        if not is_number(part):
            raise FlagError(f"{key!r} must be a number", is_type=True)
    return timedelta(**{key: int(part) if is_whole(part) else float(part) for key, part in value.items()})


def _clock_fix(value: str) -> str:
    """Fill up a clock that lacks its larger parts, for the two spellings that are common elsewhere."""
    parts = value.strip().split(":")
    if 2 <= len(parts) <= 3 and all(re.fullmatch(r"\d{1,2}", p, re.ASCII) for p in parts):
        full = ":".join(["00"] * (4 - len(parts)) + [p.zfill(2) for p in parts])
        return f'Did you mean "{full}"?'
    return ""


def val_check_interval(value: Any) -> int | float | timedelta:
    """Parse a fraction of the epoch (float), a number of batches (integer) or a time."""
    if isinstance(value, (str, Mapping, timedelta)):
        return duration(value)
    rule = "must be a fraction of the epoch (float above 0.0, to 1.0), a number of batches (integer) or a time"
    if not is_number(value):
        raise FlagError(rule, is_type=True)
    if value == 0:
        raise FlagError(
            rule,
            "To turn validation off write limit_val_batches=0; "
            "to validate before the first step write validate_at_start=True.",
        )
    if is_whole(value):
        if value > 0:
            return int(value)
        raise FlagError(rule)
    number = float(value)
    if 0.0 < number <= 1.0:
        return number
    raise FlagError(rule, f"Write {int(number)} for {int(number)} batches." if 1 < number < math.inf else "")


def devices(value: Any) -> str | int | tuple[int, ...]:
    """Parse ``"auto"``, a count, -1 (all), indices as a list or as ``"0,1"``, or a word such as a UUID.

    A word has a hyphen; what it means the accelerator knows.
    """
    rule = 'must be "auto", a count, -1 for all, or indices such as [0, 1] or "0,1"'
    if isinstance(value, str):
        text = value.strip()
        if text == "auto" or all(_OWN_WORD.fullmatch(part) for part in text.split(",")):
            return text
        if re.fullmatch(r"-?\d{1,9}", text, re.ASCII):
            return devices(int(text))
        parts = [part.strip() for part in text.removesuffix(",").split(",")]  # "3," means the device of index 3
        if not all(re.fullmatch(r"\d{1,9}", part, re.ASCII) for part in parts):
            raise FlagError(rule, nearest(text, ["auto"]))
        value = [int(part) for part in parts]
    elif is_whole(value):
        if 0 < value <= 10**6 or value == -1:
            return int(value)
        fix = "Leave it out to let the accelerator choose." if value == 0 else ""
        raise FlagError(rule, "No machine has as many." if value > 0 else fix)
    no_list = isinstance(value, (str, bytes, bool, Mapping)) or not isinstance(value, Iterable)
    if no_list or getattr(value, "ndim", 1) == 0:  # an array of one number is iterable by its type alone
        raise FlagError(rule, _number_fix(value), is_type=True)
    indices = list(value)
    if indices and all(isinstance(i, str) and _OWN_WORD.fullmatch(i) for i in indices):
        return ",".join(indices)
    if not all(is_whole(i) for i in indices):
        raise FlagError(rule, "Every index must be an integer.", is_type=True)
    if not indices or min(indices) < 0:
        raise FlagError(rule, "Name at least one device." if not indices else "An index is at least 0.")
    if len(set(indices)) != len(indices):
        raise FlagError(rule, "Name every device once.")
    return tuple(int(i) for i in indices)


def plugin(
    registry: Registry[Any],
    methods: tuple[str, ...],
    *,
    auto: bool = False,
) -> Parser:
    """Return a parser for an installed name or an instance; names are checked from metadata alone.

    Args:
        registry: Where the names are.
        methods: What an instance must have.
        auto: Whether the text ``auto`` is taken.
    """

    def parse(value: Any) -> Any:
        if isinstance(value, str):
            if (auto and value == "auto") or any(name in registry.names() for name in registry.aliases.get(value, ())):
                return value
            if value in registry.aliases:
                lacking = registry.problem(registry.aliases[value][-1], "")
                raise FlagError(f"no {registry.kind} of this kind is installed", lacking.fix if lacking else "")
            problem = registry.problem(value, "")
            if problem is not None:
                raise FlagError(problem.rule, problem.fix)
            return value
        if provides(value, methods):
            return value
        raise FlagError(
            f"must be the name of an installed {registry.kind}, or an instance of one",
            _instance_fix(value, methods) or f"Installed: {', '.join(registry.names()) or 'none'}.",
            is_type=True,
        )

    first = '``"auto"``, ' if auto else ""
    parse.__doc__ = f"Parse {first}the name of an installed {registry.kind}, or an instance of one."
    return parse


def _logs(value: Any) -> bool:
    """Return whether an object takes metrics: by its class, or, as mocks and proxies do, by itself."""
    if isinstance(value, (str, type)):
        return False
    return provides(value, LOGGER_METHODS) or all(callable(getattr(value, name, None)) for name in LOGGER_METHODS)


def _instance_fix(value: Any, methods: Iterable[str]) -> str:
    kind = value if isinstance(value, type) else type(value)
    lacking = _lacking(kind, methods)
    if lacking and len(lacking) < len(tuple(methods)):
        return f"{kind.__name__} lacks {', '.join(lacking)}."
    return f"Pass an instance: {kind.__name__}(...)." if kind is value and not lacking else ""


def precision_name(value: Any) -> Any:
    """Parse the name of an installed precision, or an instance of one.

    Returns its full name; whether it is installed is checked later.
    """
    if isinstance(value, str) or is_whole(value):
        return plugins.precisions.aliases.get(str(value), (str(value),))[0]
    if provides(value, PRECISION_METHODS):
        return value
    raise FlagError(
        'must be a name such as "32-true" or "bf16-mixed", or a Precision instance',
        _instance_fix(value, PRECISION_METHODS),
        is_type=True,
    )


def objects(value: Any) -> tuple[Any, ...]:
    """Parse one instance or several."""
    several = isinstance(value, Sequence | Set | ValuesView | Iterator) and not isinstance(value, str | bytes)
    return tuple(value) if several else (value,)


def loggers(registry: Registry[Any]) -> Parser:
    """Return a parser for True (the CSV logger), False, names, loggers, or several of these."""
    known = plugin(registry, LOGGER_METHODS)

    def parse(value: Any) -> tuple[Any, ...]:
        if is_bool(value):
            return ("csv",) if value else ()
        several = not isinstance(value, (str, bytes, Mapping)) and isinstance(value, Iterable)
        given = tuple(value) if several and not _logs(value) else (value,)
        for one in given:
            if _logs(one):
                continue
            try:
                known(one)
            except FlagError as refused:
                if isinstance(one, str):
                    rule = f"{one!r}: {refused.rule}" if several else refused.rule
                    raise FlagError(rule, refused.fix) from None
                is_class = isinstance(one, type)
                wrong = f"{one.__name__} is a class" if is_class else f"{type(one).__name__} has no log_metrics"
                fix = refused.fix or "Subclass lt_core.loggers.Logger."
                rule = f"{wrong}: each logger must be a name or an object with log_metrics"
                raise FlagError(rule, fix, is_type=True) from None
        if len({id(one) if not isinstance(one, str) else one for one in given}) != len(given):
            raise FlagError("the same logger is given twice", "Leave one of them out.")
        return given

    parse.__doc__ = "Parse True (the CSV logger), False, a name, an instance, or several of these."
    return parse


def folder(value: Any) -> str:
    """Parse a path of this machine; ``~`` is the home folder, and a relative one is that of this moment."""
    try:
        path = os.fsdecode(value)
    except TypeError:
        raise FlagError("must be a path", is_type=True) from None
    if (problem := path_problem("", path)) is not None:
        raise FlagError(problem.rule, problem.fix)
    path = os.path.abspath(os.path.expanduser(path))
    if os.path.exists(path) and not os.path.isdir(path):
        raise FlagError("must be a folder, and this is a file")
    return path
