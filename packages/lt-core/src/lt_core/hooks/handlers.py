"""Attach one-off functions to hooks: ``@trainer.on("train_batch_end", every=100)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lt_interface.errors import ConfigError, Problem, nearest

__all__ = ["Handler", "make_handler"]


@dataclass(eq=False)
class Handler:
    """Function that is called at each ``every``-th occurrence of a hook, or only at the ``once``-th.

    Attributes:
        function: As the user gave it.
        hook: The hook's full name.
        every: Call at each multiple of this count.
        once: Call at this count only.
        count: How often the hook occurred.
    """

    function: Callable[..., Any]
    hook: str
    every: int
    once: int | None
    count: int = 0

    def bound(self, trainer: Any, module: Any) -> Callable[..., Any]:
        """Return a callable that takes the hook's own arguments."""
        from lt_core.hooks.table import HOOKS, bind

        # Bound here and not kept: what `bind` returns may be no picklable function, and launchers pickle the trainer.
        call: Any = bind(self.function, ("trainer", "pl_module", *HOOKS[self.hook].args))

        def handle(*args: Any) -> None:
            self.count += 1
            if self.count == self.once if self.once is not None else self.count % self.every == 0:
                call(trainer, module, *args)

        return handle


def make_handler(event: str, function: Callable[..., Any], every: int, once: int | None) -> Handler:
    """Check an event's name, its count and the function's signature, and return the handler.

    Args:
        event: The hook's name, with or without ``on_``.
        function: Takes any leading part of ``(trainer, pl_module, *hook arguments)``, or any of those names.
        every: Call at each multiple of this count.
        once: Call at this count only.

    Raises:
        ConfigError: If no hook has that name, a count is below 1, or the function cannot be called.
    """
    from lt_core.callback import Callback
    from lt_core.hooks.table import HOOKS, bind

    known = [n for n in HOOKS if hasattr(Callback, n) and not n.endswith("_checkpoint")]
    hook = event if event in known else f"on_{event}"
    where = f"trainer.on({event!r})"
    if hook not in known:
        short = [n.removeprefix("on_") for n in known]
        fix = nearest(event, short) or f"Events: {', '.join(short)}."
        raise ConfigError(Problem(where, "no event of that name", fix=fix))
    for name, count in (("every", every), ("once", 1 if once is None else once)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(Problem(where, f"{name} must be a whole number of at least 1", repr(count)))
    names = ("trainer", "pl_module", *HOOKS[hook].args)
    if bind(function, names) is None:
        where = f"handler {getattr(function, '__name__', function)!r} of {hook}"
        fix = f"Take any leading part of ({', '.join(names)})."
        raise ConfigError(Problem(where, "the trainer cannot call this function", fix=fix))
    return Handler(function, hook, every, once)
