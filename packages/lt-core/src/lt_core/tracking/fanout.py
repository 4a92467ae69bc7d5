"""Show something in every logger that can show it, by one call of the module."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lt_core.state.timing import timed
from lt_core.tracking.outbox import report
from lt_interface.abilities import MEDIA

if TYPE_CHECKING:
    from lt_core.trainer import Trainer

__all__ = ["LoggerGroup", "shown_to_all"]


class LoggerGroup:
    """Proxy of a trainer's first logger whose calls that show something reach every logger.

    All else is the first logger's own: attributes, methods, class, equality and copies. It cannot be the first
    logger itself, since ``trainer.loggers[0].log_image`` reaches that logger alone.

    Args:
        trainer: The trainer whose loggers are called.
    """

    __slots__ = ("_trainer",)

    def __init__(self, trainer: Trainer) -> None:
        object.__setattr__(self, "_trainer", trainer)

    @property  # type: ignore[misc]  # read-only here
    def __class__(self) -> Any:
        return type(self._trainer.loggers[0])  # what isinstance asks of a proxy

    def __getattr__(self, name: str) -> Any:
        found = _to_each(self._trainer, name) if name in MEDIA else getattr(self._trainer.loggers[0], name)
        if not name.startswith("log_"):
            return found
        return timed(
            getattr(self._trainer, "_active_profiler", None),
            found,
            f"[Logger]{type(self._trainer.loggers[0]).__name__}.{name}",
        )

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._trainer.loggers[0], name, value)

    def __eq__(self, other: object) -> bool:
        return other is self or bool(self._trainer.loggers[0] == other)

    def __hash__(self) -> int:
        return hash(self._trainer.loggers[0])

    def __repr__(self) -> str:
        return repr(self._trainer.loggers[0])

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._trainer.loggers[0].__reduce_ex__(protocol)


def shown_to_all(trainer: Trainer) -> Any:
    """Return the only logger if it can show everything and no profiler measures it, else a `LoggerGroup`."""
    first = trainer.loggers[0]
    alone = len(trainer.loggers) == 1 and getattr(trainer, "_active_profiler", None) is None
    if alone and all(callable(getattr(first, name, None)) for name in MEDIA):
        return first
    return LoggerGroup(trainer)


def _to_each(trainer: Trainer, name: str) -> Callable[..., None]:
    """Return what calls the method of that name on every logger that has it; one without it is reported once."""

    def show(*args: Any, **kwargs: Any) -> None:
        if not trainer.is_global_zero:
            return
        trouble = None
        for logger in trainer.loggers:
            method = getattr(logger, name, None)
            if not callable(method):
                known, who = trainer.__dict__.setdefault("_warned_media", set()), type(logger).__name__
                if (who, name) not in known:
                    known.add((who, name))
                    report(f"self.logger.{name}: {who} cannot show {MEDIA[name]}; the others get them.")
                continue
            try:
                method(*args, **_with_step(method, args, kwargs, trainer))
            except OSError as error:  # a tracker that is away is no reason to end a run
                report(f"self.logger.{name}: {type(logger).__name__} failed with {type(error).__name__}: {error}")
            except Exception as error:  # the others are to have it all the same
                trouble = trouble or error
        if trouble is not None:
            raise trouble

    show.__name__ = name
    return show


def _with_step(method: Any, args: Any, kwargs: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
    """Return the keyword arguments with the run's step, where the call names none and the method has a place for it."""
    try:
        given = inspect.signature(method).bind_partial(*args, **kwargs)
    except (TypeError, ValueError):  # the call itself reports best what is wrong
        return kwargs
    is_open = "step" not in given.arguments or kwargs.get("step", 0) is None
    return {**kwargs, "step": trainer.global_step} if "step" in given.signature.parameters and is_open else kwargs
