"""Make a callback from plain functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lt_core.callback import Callback
from lt_core.hooks.table import HOOKS
from lt_interface.errors import Problem, nearest, raise_problems

__all__ = ["LambdaCallback"]

_HOOKS = sorted(HOOKS.keys() & vars(Callback))


class LambdaCallback(Callback):
    """Callback that calls functions at named moments; each takes what the callback's hook of that name takes.

    Args:
        **functions: A function, or None for nothing, by the hook's name:
            ``LambdaCallback(on_train_start=lambda trainer, pl_module: print("go"))``.

    Raises:
        ConfigError: If no hook has that name or a value cannot be called.
    """

    def __init__(self, **functions: Callable[..., Any] | None) -> None:
        problems = []
        for name, function in functions.items():
            where = f"LambdaCallback({name}=...)"
            if name not in _HOOKS:
                fix = nearest(name, _HOOKS) or f"Hooks: {', '.join(_HOOKS)}."
                problems.append(Problem(where, "no hook of that name", fix=fix, is_type=True))
            elif function is not None and not callable(function):
                problems.append(Problem(where, "must be a function or None", repr(function), is_type=True))
        raise_problems(problems)
        for name, function in functions.items():
            if function is not None:  # on the instance: only what was given costs a call
                setattr(self, name, function)
