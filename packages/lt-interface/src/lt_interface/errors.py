"""Errors in one form: where, rule, value, fix.

Example:
    >>> raise_problems([Problem("Trainer(max_epoch=3)", "no flag of that name", is_type=True)])
    Traceback (most recent call last):
    lt_interface.errors.ConfigTypeError: Trainer(max_epoch=3): no flag of that name.
"""

from __future__ import annotations

import signal
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
    "RankFailedError",
    "SIGTERMException",
    "UnknownPluginError",
    "choice_problems",
    "nearest",
    "nearest_name",
    "raise_problems",
    "raised_by",
]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        where: The place as the user wrote it, such as ``Trainer(max_epochs=-3)``.
        rule: What must hold, without the closing stop.
        got: The offending value, or an empty string where ``where`` shows it.
        fix: A whole sentence that says what to do.
        is_type: Whether the value's type (or the argument's name) is at fault.

    Example:
        >>> str(Problem("Trainer(devices=[])", "this must name a device", "an empty list", "Write devices=1."))
        'Trainer(devices=[]): this must name a device. Got an empty list. Write devices=1.'
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
    """Code or flags of the user that cannot work as they are.

    Example:
        >>> raise MisconfigurationException(Problem("Net.training_step", "it must return a loss", "None"))
        Traceback (most recent call last):
        lt_interface.errors.MisconfigurationException: Net.training_step: it must return a loss. Got None.
    """


class ConfigError(MisconfigurationException, ValueError, RuntimeError):
    """Every problem of a configuration at once.

    It is a ValueError for those who check values and a RuntimeError for those who guard a run: users catch
    a flag out of range as the one, and a step that the trainer cannot call as the other.

    Example:
        >>> error = ConfigError([Problem("a", "must be 1"), Problem("b", "must be 2")])
        >>> print(error)
        2 problems:
          1. a: must be 1.
          2. b: must be 2.
        >>> isinstance(error, ValueError), isinstance(error, RuntimeError)
        (True, True)
    """


class ConfigTypeError(ConfigError, TypeError):
    """Problems of a configuration of which at least one is a wrong type or an unknown name.

    Example:
        >>> issubclass(ConfigTypeError, TypeError)
        True
    """


class PluginError(ConfigError):
    """Plugin that cannot be used: broken, conflicting or unfit.

    Example:
        >>> issubclass(PluginError, ConfigError)
        True
    """


class UnknownPluginError(PluginError, KeyError):
    """Name under which no plugin is installed.

    Example:
        >>> str(UnknownPluginError(Problem("strategy 'dpp'", "no strategy of that name")))
        "strategy 'dpp': no strategy of that name."
    """

    def __str__(self) -> str:
        return Exception.__str__(self)


class InterfaceVersionError(PluginError):
    """Plugin that was written for another version of the interface.

    Example:
        >>> issubclass(InterfaceVersionError, PluginError)
        True
    """


class MissingPackageError(MisconfigurationException, ModuleNotFoundError):
    """Optional package that is missing; the message has the command that installs it.

    Example:
        >>> MissingPackageError("summary: rich is needed. Run: pip install rich", name="rich").name
        'rich'
    """


class CheckpointError(LTError):
    """Checkpoint that is missing, damaged, unsafe, too new or of another model.

    Example:
        >>> str(CheckpointError(Problem("a.ckpt", "the file is damaged", fix="Take an older one.")))
        'a.ckpt: the file is damaged. Take an older one.'
    """


class RankFailedError(LTError, RuntimeError):
    """Failure of another rank, which ends this one too; the message names the rank and what it did.

    Example:
        >>> str(RankFailedError(Problem("rank 1", "it failed in setup", "ValueError: no data", "Look at its output.")))
        'rank 1: it failed in setup. Got ValueError: no data. Look at its output.'
    """


class SIGTERMException(SystemExit):
    """SIGTERM, which ends a run as an exit with the code 143.

    Args:
        code: The exit code.

    Example:
        >>> SIGTERMException().code
        143
    """

    def __init__(self, code: int = 128 + signal.SIGTERM) -> None:
        super().__init__(code)


def raised_by(number: int) -> KeyboardInterrupt | SystemExit:
    """Return what a signal raises where it ends a run.

    Args:
        number: The signal's number.

    Example:
        >>> raised_by(signal.SIGINT), raised_by(signal.SIGTERM)
        (KeyboardInterrupt(), SIGTERMException(143))
    """
    if number == signal.SIGINT:
        return KeyboardInterrupt()
    return SIGTERMException() if number == signal.SIGTERM else SystemExit(128 + number)


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raise one error that lists all problems, or return when there are none.

    Args:
        problems: The problems, in the order in which they are shown.

    Raises:
        ConfigTypeError: If any problem is one of type or of an unknown name.
        ConfigError: If there are only others.

    Example:
        >>> raise_problems([])
        >>> raise_problems([Problem("Trainer(max_epochs=-3)", "must be at least -1")])
        Traceback (most recent call last):
        lt_interface.errors.ConfigError: Trainer(max_epochs=-3): must be at least -1.
    """
    if problems:
        raise (ConfigTypeError if any(p.is_type for p in problems) else ConfigError)(problems)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the question whether the nearest known name was meant, for the end of a message.

    Args:
        name: What the user wrote.
        known: The names there are.

    Returns:
        ``Did you mean "x"?``, or an empty string where no name is near.

    Example:
        >>> nearest("max_epoch", ["max_epochs", "max_steps"])
        'Did you mean "max_epochs"?'
    """
    match = nearest_name(name, known)
    return f'Did you mean "{match}"?' if match else ""


def choice_problems(where: str, value: object, known: Iterable[str]) -> list[Problem]:
    """Return what is wrong with a value that must be one of some words, for `raise_problems`.

    Args:
        where: The place as the user wrote it.
        value: What the user wrote.
        known: The words.

    Example:
        >>> print(*choice_problems("EarlyStopping(mode='mn')", "mn", ["min", "max"]))
        EarlyStopping(mode='mn'): this must be one of min, max. Did you mean "min"?
    """
    words = list(known)
    rule = f"this must be one of {', '.join(words)}"
    return [] if value in words else [Problem(where, rule, fix=nearest(str(value), words))]


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that looks most like a given one, whatever the case, or None.

    Args:
        name: What the user wrote.
        known: The names there are.

    Example:
        >>> nearest_name("DDP_spwan", ["ddp", "ddp_spawn"])
        'ddp_spawn'
        >>> nearest_name("horse", ["ddp", "ddp_spawn"]) is None
        True
    """
    from difflib import get_close_matches  # loaded for a message only

    by_fold = {str(k).casefold(): k for k in known}
    match = get_close_matches(str(name).casefold(), list(by_fold), n=1, cutoff=0.6)
    return by_fold[match[0]] if match else None
