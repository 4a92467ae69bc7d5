"""Report where in a tree a value lies and why it, or a whole file, is refused."""

from __future__ import annotations

from typing import Any

from lt_interface import CheckpointError, Problem

__all__ = ["RefusedValueError", "Step", "damaged", "dotted", "place", "shorten"]

# One step down a tree: a mapping's key, a position, or an attribute (".name").
Step = Any


class RefusedValueError(CheckpointError):
    """One value that a checkpoint cannot keep."""


def place(where: str, path: tuple[Step, ...]) -> str:
    """Return the place as Python spells it, such as ``checkpoint['callbacks']['EMA'][0]``."""
    return where + "".join(f"[{shorten(step, 80)}]" for step in path)


def dotted(path: tuple[Step, ...]) -> str:
    """Return the path joined by dots, as tensors are named in a file."""
    return ".".join(step if isinstance(step, str) else shorten(step, 80) for step in path)


def shorten(value: Any, limit: int = 200) -> str:
    """Return ``repr(value)``, cut to ``limit`` characters; never raises."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__qualname__}, whose repr() raises {type(error).__name__}>"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def damaged(path: str, rule: str, got: str = "") -> CheckpointError:
    """Return the error of a file whose bytes are not what was written."""
    fix = 'Use an older checkpoint, or ckpt_path="last" for the newest valid one.'
    return CheckpointError(Problem(path, rule, got, fix))
