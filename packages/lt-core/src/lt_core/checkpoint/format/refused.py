"""Take out of a tree what a checkpoint cannot keep."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from lt_core.checkpoint.format.refusal import shorten
from lt_core.checkpoint.format.tree import try_encode
from lt_interface import Problem

__all__ = ["without_refused"]

_GONE: Any = object()
_DEEPEST = 50


def without_refused(
    tree: dict[str, Any], where: str = "checkpoint", attempt: Callable[[Any, str], Problem | None] = try_encode
) -> tuple[dict[str, Any], list[Problem]]:
    """Return a tree without the entries that cannot be kept, and a problem for each; the tree itself stays as it is.

    An entry is that of a dict: a list or tuple with a refused value goes as a whole, since its places mean something.

    Args:
        tree: The tree, or a part of it.
        where: What it is called in the problems.
        attempt: Returns what hinders a value of that name from being kept, or None.
    """
    problems: list[Problem] = []
    kept = _kept(tree, where, attempt, problems, 0)
    return {} if kept is _GONE else kept, problems


def _kept(
    value: Any, where: str, attempt: Callable[[Any, str], Problem | None], problems: list[Problem], depth: int
) -> Any:
    """Return a value without its refused entries, or `_GONE`."""
    problem = attempt(value, where)
    if problem is None:
        return value
    found = len(problems)
    kept: Any = _GONE
    if depth < _DEEPEST and isinstance(value, dict):
        kept = copy.copy(value)
        for key, item in value.items():
            inner = _kept(item, f"{where}[{shorten(key, 80)}]", attempt, problems, depth + 1)
            if inner is _GONE:
                del kept[key]
            else:
                kept[key] = inner
    elif depth < _DEEPEST and type(value) in (list, tuple):
        items = [_kept(item, f"{where}[{n}]", attempt, problems, depth + 1) for n, item in enumerate(value)]
        kept = _GONE if any(item is _GONE for item in items) else type(value)(items)
    if len(problems) == found or (kept is not _GONE and attempt(kept, where) is not None):
        if len(problems) == found:
            problems.append(problem)
        return _GONE
    return kept
