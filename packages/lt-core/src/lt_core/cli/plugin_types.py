"""Describe the trainer's plugins to the parser.

A flag such as ``logger`` takes a name from the registry, or an object with some methods that a protocol describes.
jsonargparse holds the classes of a protocol's objects to every annotation of it; the core asks for less, namely for the
methods that the flag's own parser looks for. So the parser gets one class in the place of all these protocols. Every
class counts as its subclass, and those that are known by their short names, as in ``--trainer.logger=CSVLogger``, are
those of the registry. What does not fit is reported by the trainer.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from inspect import Parameter, signature
from types import UnionType
from typing import Any, Union, get_args, get_origin

from lt_core.config import parsers as kinds
from lt_core.config.parsers import provides
from lt_core.config.rules import PLUGIN_METHODS
from lt_core.trainer import Trainer
from lt_interface import Logger, registry

__all__ = ["Plugin", "plugins_as_classes"]

REGISTRIES = (
    registry.loggers,
    registry.strategies,
    registry.accelerators,
    registry.precisions,
    registry.checkpoint_ios,
    registry.clusters,
    registry.launchers,
    registry.profilers,
)
# What makes an object one of them.
METHODS: list[tuple[str, ...]] = [methods for _, methods in PLUGIN_METHODS]
METHODS += [kinds.LOGGER_METHODS, kinds.STRATEGY_METHODS, kinds.ACCELERATOR_METHODS, kinds.LAUNCHER_METHODS]
METHODS += [kinds.PROFILER_METHODS]


class _Plugins(ABCMeta):
    """Class of a class that any class is a subclass of."""

    def __subclasscheck__(cls, other: type) -> bool:
        return isinstance(other, type)

    def __instancecheck__(cls, value: object) -> bool:
        return any(provides(value, methods) for methods in METHODS)

    def __subclasses__(cls) -> list[type]:
        found: list[type] = [Logger]  # with those that derive from it
        for group in REGISTRIES:
            for name in group.names():
                with suppress(Exception):  # one that cannot be imported is reported where it is asked for
                    found.append(group.get(name))
        return [each for each in found if isinstance(each, type)]


class Plugin(metaclass=_Plugins):
    """Logger, strategy, accelerator, precision, checkpoint format, cluster, launcher or profiler."""

    @abstractmethod
    def __init__(self) -> None: ...


@contextmanager
def plugins_as_classes() -> Iterator[None]:
    """Give the trainer's signature the form that the parser reads, for a while."""
    init: Any = Trainer.__init__
    before, notes = signature(init), init.__annotations__
    parameters = [p.replace(annotation=_readable(p.annotation)) for p in before.parameters.values()]
    init.__signature__ = before.replace(parameters=parameters)
    init.__annotations__ = notes | {p.name: p.annotation for p in parameters if p.annotation is not Parameter.empty}
    try:
        yield
    finally:
        init.__signature__, init.__annotations__ = before, notes


def _readable(annotation: Any) -> Any:
    """Return an annotation with one class for all protocols in it, tried before texts, which take anything."""
    if getattr(annotation, "_is_protocol", False):
        return Plugin
    parts = tuple(_readable(part) for part in get_args(annotation))
    if parts == get_args(annotation):
        return annotation
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return Union[tuple(sorted(parts, key=lambda part: (part is str, part is not Plugin)))]  # noqa: UP007
    return origin[parts]
