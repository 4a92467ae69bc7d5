"""Run ``lt``: a module and a data module that are named, and what is done with files of runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from lt_interface.errors import ConfigError, LTError

__all__ = ["main"]

# What needs neither a model nor jsonargparse: where its main is, and what it does.
COMMANDS = {
    "checkpoint": ("lt_core.checkpoint.__main__", "show, verify or import checkpoints"),
    "journal": ("lt_core.journal.__main__", "send loggers what they lack of a run"),
    "env": ("lt_core.__main__", "print what is installed, plugins and devices, for bug reports"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 2 for what was written wrongly, 1 for another error of ours.

    Args:
        arguments: The command line; the process's own if None.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where the user's modules are, as for `python -m`
    others = {name: (home, does) for name, (home, does) in COMMANDS.items() if find_spec(home)}
    try:
        if words and words[0] in others:
            return int(import_module(others[words[0]][0]).main(words[1:]) or 0)
        more = [f"{name} ({does})" for name, (_, does) in others.items()]
        settings = {"prog": "lt", "description": "Train, validate, test or predict with a model that you name."}
        settings["epilog"] = f"Other commands: {'; '.join(more)}."
        # By its name: without jsonargparse its import says what to install, and the other commands work.
        import_module("lt_core.cli").LightningCLI(parser_kwargs=settings, args=None if arguments is None else words)
    except LTError as error:
        print(f"lt: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0
