"""Say what is wrong in one form: where, rule, value, fix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ConfigTypeError",
    "InterfaceVersionError",
    "LTError",
    "MisconfigurationException",
    "MissingPackageError",
    "PluginError",
    "Problem",
    "UnknownPluginError",
    "nearest",
    "nearest_name",
    "raise_problems",
]


@dataclass(frozen=True)
class Problem:
    """Describe one thing that is wrong.

    Attributes:
        where: The place as the user wrote it, such as ``Trainer(max_epochs=-3)``.
        rule: What must hold, without the closing stop.
        got: The offending value, or an empty string where ``where`` shows it.
        fix: A whole sentence that says what to do.
        is_type: Whether the value's type (or the argument's name) is at fault.
    """

    where: str
    rule: str
    got: str = ""
    fix: str = ""
    is_type: bool = False

    def __str__(self) -> str:
        got = f" Got {self.got}." if self.got else ""
        fix = f" {self.fix}" if self.fix else ""
        return f"{self.where}: {self.rule}.{got}{fix}"


class LTError(Exception):
    """Base of every error that these packages raise on purpose.

    Args:
        problems: The problems, all of them at once, or one ready sentence.
        details: Keywords of another base, such as ``name`` of an ImportError.

    Attributes:
        problems: The problems; empty for a ready sentence.

    Example:
        >>> str(LTError(Problem("Trainer(max_epochs=-3)", "must be at least -1", fix="Write max_epochs=3.")))
        'Trainer(max_epochs=-3): must be at least -1. Write max_epochs=3.'
    """

    def __init__(self, problems: Iterable[Problem] | Problem | str = "", **details: object) -> None:
        if isinstance(problems, str):
            self.problems: tuple[Problem, ...] = ()
            super().__init__(problems, **details)
            return
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        lines = [str(p) for p in self.problems]
        text = lines[0]
        if len(lines) > 1:
            text = f"{len(lines)} problems:\n" + "\n".join(f"  {i}. {line}" for i, line in enumerate(lines, 1))
        super().__init__(text, **details)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problems or Exception.__str__(self),), self.__dict__


class MisconfigurationException(LTError):  # noqa: N818 - the familiar name
    """Code or flags of the user that cannot work as they are."""


class ConfigError(MisconfigurationException, ValueError, RuntimeError):
    """Every problem of a configuration at once.

    It is a ValueError for who checks values and a RuntimeError for who guards a run: of old, a
    flag out of range was the one, a step that the trainer could not call the other.
    """


class ConfigTypeError(ConfigError, TypeError):
    """Report problems of which at least one is a wrong type or an unknown name."""


class PluginError(ConfigError):
    """Say that a plugin can not be used: broken, conflicting or unfit."""


class UnknownPluginError(PluginError, KeyError):
    """Say that no plugin of that name is installed."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class InterfaceVersionError(PluginError):
    """Say that a plugin was written for another version of the interface."""


class MissingPackageError(MisconfigurationException, ModuleNotFoundError):
    """Say that an optional package is missing, and with which command it comes."""


class CheckpointError(LTError):
    """Say that a checkpoint is missing, damaged, unsafe, too new or of another model."""


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raise one error that lists all problems, or return when there are none.

    Raises:
        ConfigTypeError: If any problem is one of type or of an unknown name.
        ConfigError: For all others.
    """
    if problems:
        raise (ConfigTypeError if any(p.is_type for p in problems) else ConfigError)(problems)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``Did you mean "x"?`` for the nearest known name, or an empty string."""
    match = nearest_name(name, known)
    return f'Did you mean "{match}"?' if match else ""


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that looks most like the given one, whatever the case, or None."""
    from difflib import get_close_matches  # loaded for a message only

    by_fold = {str(k).casefold(): k for k in known}
    match = get_close_matches(str(name).casefold(), list(by_fold), n=1, cutoff=0.6)
    return by_fold[match[0]] if match else None
