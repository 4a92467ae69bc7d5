"""Let one call on the module's side show something in every logger that can show it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lt_core.notices import warn
from lt_interface.abilities import MEDIA

if TYPE_CHECKING:
    from lt_core.trainer import Trainer

__all__ = ["LoggerGroup", "shown_to_all"]


class LoggerGroup:
    """Be the first logger in all but the calls that show something: those reach every logger.

    A logger without the ability is named once. It passes for the first logger, also to ``isinstance``.
    """

    def __init__(self, trainer: Trainer) -> None:
        object.__setattr__(self, "_trainer", trainer)

    @property
    def __class__(self) -> Any:
        return type(self._trainer.loggers[0])

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise TypeError("a logger's class can not be changed here")

    def __getattr__(self, name: str) -> Any:
        trainer = object.__getattribute__(self, "_trainer")
        return _to_each(trainer, name) if name in MEDIA else getattr(trainer.loggers[0], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._trainer.loggers[0], name, value)

    def __eq__(self, other: object) -> bool:
        first = self._trainer.loggers[0]
        return bool(other is self or other is first or other == first)

    def __hash__(self) -> int:
        return hash(self._trainer.loggers[0])

    def __repr__(self) -> str:
        return repr(self._trainer.loggers[0])

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._trainer.loggers[0], memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._trainer.loggers[0].__reduce_ex__(protocol)


def shown_to_all(trainer: Trainer) -> Any:
    """Return the only logger if it can show everything, else a `LoggerGroup`."""
    first = trainer.loggers[0]
    if len(trainer.loggers) == 1 and all(callable(getattr(first, name, None)) for name in MEDIA):
        return first
    return LoggerGroup(trainer)


def _to_each(trainer: Trainer, name: str) -> Callable[..., None]:
    def show(*args: Any, **kwargs: Any) -> None:
        if not trainer.is_global_zero:
            return
        trouble = None
        for logger in trainer.loggers:
            method = getattr(logger, name, None)
            if not callable(method):
                _tell_once(trainer, type(logger).__name__, name)
                continue
            try:
                method(*args, **_with_step(method, args, kwargs, trainer))
            except OSError as error:  # a tracker that is away is no reason to end a run
                _tell(f"self.logger.{name}: {type(logger).__name__} failed with {type(error).__name__}: {error}")
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
    except (TypeError, ValueError):  # the call itself says best what is wrong
        return kwargs
    is_open = "step" not in given.arguments or kwargs.get("step", 0) is None
    return {**kwargs, "step": trainer.global_step} if "step" in given.signature.parameters and is_open else kwargs


def _tell_once(trainer: Trainer, who: str, name: str) -> None:
    told = trainer.__dict__.setdefault("_told_media", set())
    if (who, name) not in told:
        told.add((who, name))
        _tell(f"self.logger.{name}: {who} can not show {MEDIA[name]}; the others get them.")


def _tell(message: str) -> None:
    with suppress(Warning):  # where warnings are errors, the others are to have it all the same
        warn(message)
