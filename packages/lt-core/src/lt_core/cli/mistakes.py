"""Word the parser's errors in one line: the key, what is wrong with it, the nearest name.

jsonargparse reports how a value failed each type that it might have had, over many lines. What matters stands in the
innermost part: an option that a class does not take, a class that cannot be imported, a value of another type. It is
found by the words that jsonargparse uses; a text that has none of these is put into one line as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pkgutil import resolve_name
from typing import Any

from jsonargparse import ArgumentParser

from lt_core.config.legacy import ADVICE
from lt_interface.errors import nearest_name

__all__ = ["one_line"]

KEY = re.compile(r'Parser key "([^"]+)":')
UNTAKEN = re.compile(
    r"(?:Group '(?P<group>[^']+)' does|Subcommand '[^']+' does|Option) ?(?:not accept option )?'(?P<option>[^']+)'"
)
OF_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
REQUIRED = re.compile(r"the following arguments are required: ([\w., -]+)")
UNKNOWN = re.compile(r"unrecognized arguments: (.*)", re.DOTALL)
CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")
NO_CLASS = re.compile(
    r"No module named|has no attribute|Expected a dot import path string|Unexpected import path format"
)
NAMED = re.compile(r"import path (?:string|format): (\S+)")
NO_ACTION = re.compile(r'No action for key "([^"]+)"')
NO_SUBCLASS = re.compile(r"(?:Import path |path )(?:(\S+) )?does not correspond to a subclass of (\w+)")
SUBTYPES = re.compile(r"Subtypes: \[(.*)\]$", re.MULTILINE)
EXPECTED = re.compile(r"Expected an? (<class '[^']+'>|[^\n.]+)\.? Got value: (.*)")
GIVEN = re.compile(r"Given value: (.*)")
CLASSES = re.compile(r"[\w.]+\.[A-Z]\w*")
MOST = 80


def one_line(parser: Any, message: str) -> str:
    """Return an error of the parser in one line.

    Args:
        parser: The parser.
        message: What jsonargparse says.
    """
    for word in (_unknown, _untaken, _required, _no_class, _no_subclass, _wrong_type):
        text = word(parser, message)
        if text:
            return text
    if message.startswith('expected "subcommand"'):
        return f"it takes one of {', '.join(_commands(parser))}. Got none."
    if found := CHOICE.search(message):
        return f"{found[1]}: no such command. {_meant(found[1], _commands(parser))}".rstrip()
    near = [_meant(key, _keys(parser)) for key in NO_ACTION.findall(message)]
    return " ".join([*KEY.sub(r"--\1:", message).split(), *near])


def _unknown(parser: Any, message: str) -> str:
    found = UNKNOWN.search(message)
    if not found:
        return ""
    words = [word.partition("=")[0] for word in found[1].split()]
    keys = [word for word in words if word.startswith("-")] or words
    options = list(parser._option_string_actions)
    commands = getattr(parser._subcommands_action, "choices", {})
    late = [name for name, sub in commands.items() if keys[0] in sub._option_string_actions]
    if late:
        return f"{keys[0]}: it comes after the command, as in {parser.prog} {late[0]} {keys[0]}=..."
    return " ".join(_unknown_key(key, options) for key in keys)


def _unknown_key(key: str, options: Iterable[str]) -> str:
    advice = ADVICE.get(key.removeprefix("--trainer.")) if key.startswith("--trainer.") else None
    return f"{key}: unknown. {advice or _meant(key, options)}".rstrip()


def _untaken(parser: Any, message: str) -> str:
    found = [*UNTAKEN.finditer(message)]
    if not found:
        return ""
    before = message[: found[0].start()]
    keys, owner = KEY.findall(before), OF_CLASS.findall(before)
    option = ".".join(filter(None, [*keys, found[0]["group"], found[0]["option"]]))
    if not owner:
        return _unknown_key(f"--{option}", parser._option_string_actions)
    name, names = owner[-1].rpartition(".")[2], _arguments(owner[-1])
    prefix = option.removesuffix(found[0]["option"])
    if len(owner) == 1 and any(base.endswith(f".{name}") for base in _bases(message)[:1]):
        return f"--{option}: the class comes first, as in --{prefix[:-1]}=CLASS --{option}=..."
    return f"--{option}: {name} takes no such argument. {_meant(option, [prefix + n for n in names], '--')}".rstrip()


def _required(parser: Any, message: str) -> str:
    found = REQUIRED.search(message)
    if not found:
        return ""
    keys, owner = KEY.findall(message[: found.start()]), OF_CLASS.findall(message[: found.start()])
    heads = tuple(f"{command}." for command in _commands(parser))
    names = [name.partition(".")[2] if heads and name.startswith(heads) else name for name in found[1].split(", ")]
    options = " and ".join("--" + ".".join([*keys, name.strip()]) for name in names)
    by = f" by {owner[-1].rpartition('.')[2]}" if owner else ""
    return f"{options}: required{by}. Got none."


def _no_class(parser: Any, message: str) -> str:
    found = NO_CLASS.search(message)
    keys = KEY.findall(message[: found.start()]) if found else []
    if not found or not keys:
        return ""
    path = (OF_CLASS.findall(message) or NAMED.findall(message) or [""])[-1]
    return f"--{'.'.join(keys)}: there is no class {path}. {_meant(path, _classes(message, path))}".rstrip()


def _no_subclass(parser: Any, message: str) -> str:
    found = NO_SUBCLASS.search(message)
    if not found:
        return ""
    keys, given = KEY.findall(message[: found.start()]), GIVEN.findall(message)
    path = found[1] or (given[-1] if given else "it")
    return f"--{'.'.join(keys)}: it takes a subclass of {found[2]}. Got {path[:MOST]}."


def _wrong_type(parser: Any, message: str) -> str:
    keys = KEY.findall(message)
    if not keys:
        return ""
    last = message[message.rindex(f'"{keys[-1]}"') :]
    direct, subtypes, given = EXPECTED.search(last), SUBTYPES.search(last), GIVEN.findall(last)
    if direct:
        kinds, value = direct[1], direct[2]
    elif subtypes and given:
        kinds, value = subtypes[1], given[-1]
    else:
        return ""
    kinds = re.sub(r"<class '([^']+)'>", r"\1", kinds).replace("NoneType", "null")
    kinds = re.sub(r"\b(?:\w+\.)+(?=\w)", "", kinds)
    return f"--{'.'.join(keys)}: it takes {kinds.replace(', ', ' or ')}. Got {value.strip()[:MOST]}."


def _commands(parser: Any) -> list[str]:
    return list(getattr(parser._subcommands_action, "choices", None) or {})


def _keys(parser: Any) -> list[str]:
    return [action.dest for action in parser._actions]


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
    for each in (each for base in bases for each in _below(base)):
        names.append(f"{each.__module__}.{each.__qualname__}" if dot else each.__name__)
    return names


def _bases(message: str) -> list[str]:
    """Return the paths of the classes of which an argument takes a subclass."""
    return list(dict.fromkeys(CLASSES.findall("".join(SUBTYPES.findall(message)))))


def _below(cls: Any) -> Iterator[type]:
    for each in cls.__subclasses__():
        yield each
        yield from _below(each)


def _meant(name: str, known: Iterable[str], before: str = "") -> str:
    match = nearest_name(name, known)
    return f"Did you mean {before}{match}?" if match else ""
