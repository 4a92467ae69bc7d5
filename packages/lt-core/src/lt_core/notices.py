"""Report something to the user: a warning to act on, or a line of information."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from contextlib import suppress
from typing import Any

from lt_interface import is_rank_zero

__all__ = ["PossibleUserWarning", "caller", "info", "is_terminal", "say", "warn"]

_log = logging.getLogger("lt_core")
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class PossibleUserWarning(UserWarning):
    """Warning of something that may be meant; silence with ``POSSIBLE_USER_WARNINGS=off``."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn once for each place in the user's code, on rank 0 only, pointing at that place."""
    if not is_rank_zero() or (category is PossibleUserWarning and os.environ.get("POSSIBLE_USER_WARNINGS") == "off"):
        return
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    if frame.f_globals.get("__name__") == "threading":  # a thread of ours: there is no place in the user's code
        level = 2
    with suppress(OSError, ValueError):  # standard error may be closed or full
        warnings.warn(message, category, stacklevel=level)


def info(message: str) -> None:
    """Write a line on rank 0 only: through the ``lt_core`` logger, or to stderr where no logging is configured."""
    if not is_rank_zero():
        return
    if _log.hasHandlers():
        with suppress(OSError, ValueError):
            _log.info(message)
    elif _log.level <= logging.INFO:
        say(message, sys.stderr)


def caller() -> str:
    """Return the function outside of this package that called into it, as ``Net.training_step (train.py:12)``."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    code = frame.f_code
    owner = f"{type(frame.f_locals['self']).__name__}." if "self" in frame.f_locals else ""
    name = "" if code.co_name.startswith("<") else f"{owner}{code.co_name} "
    return f"{name}({os.path.basename(code.co_filename)}:{frame.f_lineno})"


def say(text: str, stream: Any = None) -> None:
    """Print a text; a stream that is closed, full, of another encoding or hardly a stream at all ends no run.

    Args:
        text: What to print.
        stream: Where to; standard output if None.
    """
    out = sys.stdout if stream is None else stream
    with suppress(Exception):
        try:
            print(text, file=out, flush=True)
        except UnicodeEncodeError:
            encoding = getattr(out, "encoding", None) or "ascii"
            print(text.encode(encoding, "replace").decode(encoding), file=out, flush=True)


def is_terminal(stream: Any = None) -> bool:
    """Return whether a stream, standard output if None, leads to a terminal; what cannot say so does not."""
    with suppress(Exception):
        return bool((sys.stdout if stream is None else stream).isatty())
    return False
