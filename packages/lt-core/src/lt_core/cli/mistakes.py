"""Word the parser's errors in one line: the key, what is wrong with it, the nearest name.

jsonargparse reports how a value failed each type that it might have had, over many lines. What matters stands in the
innermost part: an option that a class does not take, a class that cannot be imported, a value of another type. It is
found by the words that jsonargparse uses; a text that has none of these is put into one line as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pkgutil import resolve_name
from traceback import walk_tb
from typing import Any

from jsonargparse import ArgumentParser

from lt_core.config.flags import FLAGS
from lt_core.config.legacy import ADVICE
from lt_interface.errors import LTError, nearest_name

__all__ = ["one_line", "refusal"]

KEY = re.compile(r'Parser key "([^"]+)":')
OF_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
NAMED = re.compile(r"import path (?:string|format): (\S+)")
SUBTYPES = re.compile(r"Subtypes: \[(.*)\]$", re.MULTILINE)
EXPECTED = re.compile(r"Expected an? (<class '[^']+'>|[^\n.]+)\.? Got value: (.*)")
GIVEN = re.compile(r"Given value: (.*)")
OPTION = re.compile(r'(?<![\w.(-])(\w+)=(?:"[^"]*"|[^\s,."]+)')
CLASSES = re.compile(r"[\w.]+\.[A-Z]\w*")
# A class that could not be made, and what else the value might have been: that comes later, and says less.
TRIES = re.compile(r"^(( *)- Problem with given class_path.*\n(?:\2 .*\n)*)(?:\2- .*\n(?:\2 .*\n)*)+", re.MULTILINE)
MOST = 80


@dataclass(frozen=True)
class Mistake:
    """What was found in a text of the parser.

    Attributes:
        parser: The parser.
        message: The text.
        found: What matched in it.
        keys: The keys of the arguments around it, the outermost first.
        owners: The paths of the classes whose arguments these are.
    """

    parser: Any
    message: str
    found: re.Match[str]
    keys: list[str]
    owners: list[str]

    def option(self, *names: str | None) -> str:
        """Return the option as it is written on a command line."""
        return "--" + ".".join(filter(None, [*self.keys, *names]))

    @property
    def commands(self) -> dict[str, Any]:
        """The parsers of the subcommands."""
        return getattr(self.parser._subcommands_action, "choices", None) or {}


def one_line(parser: Any, message: str) -> str:
    """Return an error of the parser in one line.

    Args:
        parser: The parser.
        message: What jsonargparse says.
    """
    cut = 1
    while cut:
        message, cut = TRIES.subn(r"\1", message)
    for pattern, word in WORDS.items():
        found = pattern.search(message)
        if found:
            before = message[: found.start()]
            text = word(Mistake(parser, message, found, KEY.findall(before), OF_CLASS.findall(before)))
            if text:
                return text.rstrip()
    return " ".join(KEY.sub(r"--\1:", message).split())


def refusal(error: BaseException) -> LTError | None:
    """Return the error of ours for which an object was not made; jsonargparse keeps it among others of its tries.

    Args:
        error: What jsonargparse raised.
    """
    if isinstance(error, LTError):
        return error
    for frame, _ in walk_tb(error.__traceback__):
        for kept in [value for value in frame.f_locals.values() if isinstance(value, list)]:
            for each in kept:
                found = refusal(each) if isinstance(each, Exception) and each is not error else None
                if found is not None:
                    return found
    return None


def _unknown(mistake: Mistake) -> str:
    words = [word.partition("=")[0] for word in mistake.found[1].split()]
    keys = [word for word in words if word.startswith("-")] or words
    for name, sub in mistake.commands.items():
        if keys[0] in sub._option_string_actions:
            return f"{keys[0]}: it comes after the command, as in {mistake.parser.prog} {name} {keys[0]}=..."
    return " ".join(_unknown_key(mistake, key).rstrip() for key in keys)


def _unknown_key(mistake: Mistake, key: str) -> str:
    advice = ADVICE.get(key.removeprefix("--trainer.")) if key.startswith("--trainer.") else None
    return f"{key}: unknown. {_as_options(advice) if advice else _meant(key, mistake.parser._option_string_actions)}"


def _as_options(advice: str) -> str:
    """Return advice about what to write in Python in the words of a command line."""
    text = re.sub(r"callbacks=\[(\w+)\(.*?\)\]", r"--trainer.callbacks+=\1", advice)
    text = re.sub(r'Give it to the method: trainer\.fit\(model, (ckpt_path=)"\.\.\."\)', r"Write --\1...", text)
    return OPTION.sub(lambda m: f"--trainer.{m[0]}".replace('"', "") if m[1] in FLAGS else m[0], text)


def _untaken(mistake: Mistake) -> str:
    last = mistake.found["option"]
    option = mistake.option(mistake.found["group"], last)
    if not mistake.owners:
        return _unknown_key(mistake, option)
    name, prefix = mistake.owners[-1].rpartition(".")[2], option.removesuffix(last)
    if len(mistake.owners) == 1 and any(base.endswith(f".{name}") for base in _bases(mistake.message)[:1]):
        return f"{option}: the class comes first, as in {prefix[:-1]}=CLASS {option}=..."
    known = [prefix + name for name in _arguments(mistake.owners[-1])]
    return f"{option}: {name} takes no such argument. {_meant(option, known)}"


def _required(mistake: Mistake) -> str:
    heads = tuple(f"{command}." for command in mistake.commands) or ("//",)
    names = [name.partition(".")[2] if name.startswith(heads) else name for name in mistake.found[1].split(", ")]
    by = f" by {mistake.owners[-1].rpartition('.')[2]}" if mistake.owners else ""
    return f"{' and '.join(map(mistake.option, names))}: required{by}. Got none."


def _no_class(mistake: Mistake) -> str:
    classes, named = OF_CLASS.findall(mistake.message), NAMED.findall(mistake.message)
    path = ((named if named and len(mistake.keys) > len(mistake.owners) > 0 else classes or named) or [""])[-1]
    meant = _meant(path, _classes(mistake.message, path))
    return f"{mistake.option()}: there is no class {path}. {meant}" if mistake.keys else ""


def _no_subclass(mistake: Mistake) -> str:
    path = mistake.found[1] or "".join(GIVEN.findall(mistake.message)[-1:])
    return f"{mistake.option()}: it takes a subclass of {mistake.found[2]}. Got {path[:MOST]}."


def _wrong_type(mistake: Mistake) -> str:
    keys = KEY.findall(mistake.message)
    last = mistake.message[mistake.message.rindex(f'"{keys[-1]}"') :]
    direct, subtypes, given = EXPECTED.search(last), SUBTYPES.search(last), GIVEN.findall(last)
    if not direct and not (subtypes and given):
        return ""
    kinds, value = (direct[1], direct[2]) if direct else (subtypes[1] if subtypes else "", given[-1])
    kinds = re.sub(r"<class '([^']+)'>", r"\1", kinds).replace("NoneType", "null")
    kinds = re.sub(r"\b(?:\w+\.)+(?=\w)", "", kinds)
    return f"--{'.'.join(keys)}: it takes {kinds.replace(', ', ' or ')}. Got {value.strip()[:MOST]}."


def _no_command(mistake: Mistake) -> str:
    wrong = mistake.found[1]
    if wrong is None:
        return f"it takes one of {', '.join(mistake.commands)}. Got none."
    return f"{wrong}: no such command. {_meant(wrong, mistake.commands)}"


def _no_link(mistake: Mistake) -> str:
    dests = [action.dest for action in mistake.parser._actions]
    return f"{mistake.message} {_meant(mistake.found[1], dests)}"


# In the order in which they are tried; the first that has words wins.
WORDS: dict[re.Pattern[str], Callable[[Mistake], str]] = {
    re.compile(r"unrecognized arguments: (.*)", re.DOTALL): _unknown,
    re.compile(
        r"(?:Group '(?P<group>[^']+)' does|Subcommand '[^']+' does|Option) ?(?:not accept option )?'(?P<option>[^']+)'"
    ): _untaken,
    re.compile(r"the following arguments are required: ([\w., -]+)"): _required,
    re.compile(r"No module named|has no attribute|Expected a dot import path string|Unexpected import path"): _no_class,
    re.compile(r"(?:Import path |path )(?:(\S+) )?does not correspond to a subclass of (\w+)"): _no_subclass,
    KEY: _wrong_type,
    re.compile(r"invalid choice: '([^']*)' \(choose from|^expected \"subcommand\""): _no_command,
    re.compile(r'No action for key "([^"]+)"'): _no_link,
}


def _arguments(path: str) -> list[str]:
    """Return the names of the arguments that a class takes from a command line."""
    with suppress(Exception):
        return list(ArgumentParser(exit_on_error=False).add_class_arguments(resolve_name(path), fail_untyped=False))
    return []


def _classes(message: str, path: str) -> list[str]:
    """Return the classes that a wrong path might have meant: those of its module, and others, that fit the argument."""
    bases: list[Any] = []
    for base in _bases(message):
        with suppress(Exception):
            bases.append(resolve_name(base))
    module, dot, _ = path.rpartition(".")
    names = []
    with suppress(Exception):
        for name, value in vars(resolve_name(module)).items():
            if isinstance(value, type) and issubclass(value, tuple(bases) or object):
                names.append(f"{module}.{name}")
    for each in (each for base in bases if isinstance(base, type) for each in _below(base)):
        names.append(f"{each.__module__}.{each.__qualname__}" if dot else each.__name__)
    return names


def _bases(message: str) -> list[str]:
    """Return the paths of the classes of which an argument takes a subclass."""
    return list(dict.fromkeys(CLASSES.findall("".join(SUBTYPES.findall(message)))))


def _below(cls: Any) -> Iterator[type]:
    for each in cls.__subclasses__():
        yield each
        yield from _below(each)


def _meant(name: str, known: Iterable[str]) -> str:
    match = nearest_name(name, known)
    return f"Did you mean {match}?" if match else ""
