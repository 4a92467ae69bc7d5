"""Calls and items wrapped for a profiler; without one they stay as they are, and cost nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from torch import nn

from lt_core.callback import Callback

__all__ = ["hook_action", "timed", "timed_items"]

T = TypeVar("T")


def hook_action(owner: Any, name: str) -> str:
    """Return the name of the action that a method of a callback, module or data module is.

    Args:
        owner: Whose method it is.
        name: The method's name.
    """
    if isinstance(owner, Callback):
        return f"[Callback]{owner.state_key}.{name}"
    kind = "LightningModule" if isinstance(owner, nn.Module) else "LightningDataModule"
    return f"[{kind}]{type(owner).__name__}.{name}"


def timed(profiler: Any, function: Callable[..., T], action: str) -> Callable[..., T]:
    """Return a function whose calls are actions of a profiler.

    Args:
        profiler: The profiler, or None to get the function itself.
        function: The function.
        action: The action's name.
    """
    if profiler is None:
        return function

    def wrapped(*args: Any, **kwargs: Any) -> T:
        with profiler.profile(action):
            return function(*args, **kwargs)

    return wrapped


def timed_items(profiler: Any, items: Iterable[T], action: str) -> Iterable[T]:
    """Return an iterable whose waits for the next item are actions of a profiler.

    Args:
        profiler: The profiler, or None to get the iterable itself.
        items: The items.
        action: The action's name.
    """
    return items if profiler is None else _each(profiler, items, action)


def _each(profiler: Any, items: Iterable[T], action: str) -> Iterator[T]:
    iterator = iter(items)
    while True:
        with profiler.profile(action):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item
