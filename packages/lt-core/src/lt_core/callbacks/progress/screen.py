"""See where output goes: a terminal, a notebook, or a file."""

from __future__ import annotations

import os
import sys
from enum import Enum
from typing import IO

from lt_core.notices import is_terminal

__all__ = ["Screen", "detect"]


class Screen(Enum):
    """Places that output leads to."""

    TERMINAL = "terminal"
    NOTEBOOK = "notebook"
    LINES = "lines"


def detect(stream: IO[str] | None = None) -> Screen:
    """Return what a stream (standard output, if None) leads to; imports nothing."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it long before us
    if ipython is not None and hasattr(ipython.get_ipython(), "kernel"):
        return Screen.NOTEBOOK
    return Screen.TERMINAL if is_terminal(stream) and os.environ.get("TERM") != "dumb" else Screen.LINES
