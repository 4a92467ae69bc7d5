"""Attach one-off functions to hooks: ``@trainer.on("train_batch_end", every=100)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lt_interface.errors import ConfigError, Problem, nearest

__all__ = ["Handler", "make_handler"]


class Handler:
    """Call a function at each ``every``-th occurrence of a hook, or only at the ``once``-th.

    Args:
        function: Takes any leading part of ``(trainer, pl_module, *hook arguments)``, or any of
            those names.
        hook: The hook's full name.
        every: Call at each multiple of this count.
        once: Call at this count only.
    """

    def __init__(self, function: Callable[..., Any], hook: str, every: int, once: int | None) -> None:
        self.function, self.hook, self.every, self.once = function, hook, every, once
        self.count = 0

    def bound(self, trainer: Any, module: Any) -> Callable[..., Any]:
        """Return a callable that takes the hook's own arguments."""
        from lt_core.hooks.table import HOOKS, bind

        call = bind(self.function, ("trainer", "pl_module", *HOOKS[self.hook].args))
        if call is None:
            raise ConfigError(_unbindable(self.function, self.hook))

        def handle(*args: Any) -> None:
            self.count += 1
            if self.count == self.once if self.once is not None else self.count % self.every == 0:
                call(trainer, module, *args)

        return handle


def make_handler(event: str, function: Callable[..., Any], every: int, once: int | None) -> Handler:
    """Check an event's name, its count and the function's signature, and return the handler.

    Raises:
        ConfigError: If no hook has that name, a count is below 1, or the function can not be called.
    """
    from lt_core.callback import Callback
    from lt_core.hooks.table import HOOKS, bind

    known = [n for n in HOOKS if hasattr(Callback, n) and not n.endswith("_checkpoint")]
    hook = event if event in known else f"on_{event}"
    where = f"trainer.on({event!r})"
    if hook not in known:
        short = [n.removeprefix("on_") for n in known]
        raise ConfigError(
            Problem(where, "no event of that name", fix=nearest(event, short) or f"Events: {', '.join(short)}.")
        )
    for name, count in (("every", every), ("once", 1 if once is None else once)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(Problem(where, f"{name} must be a whole number of at least 1", repr(count)))
    if bind(function, ("trainer", "pl_module", *HOOKS[hook].args)) is None:
        raise ConfigError(_unbindable(function, hook))
    return Handler(function, hook, every, once)


def _unbindable(function: Callable[..., Any], hook: str) -> Problem:
    from lt_core.hooks.table import HOOKS

    wanted = ", ".join(("trainer", "pl_module", *HOOKS[hook].args))
    return Problem(
        f"handler {getattr(function, '__name__', function)!r} of {hook}",
        "the trainer can not call this function",
        fix=f"Take any leading part of ({wanted}).",
    )
