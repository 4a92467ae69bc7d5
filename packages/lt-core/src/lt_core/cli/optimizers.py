"""Build optimizers and schedulers that a command line or a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, Union

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lt_core.optim.by_rule import ByRule
from lt_interface.errors import ConfigError, Problem

__all__ = [
    "ConfiguredOptimizers",
    "LRSchedulerCallable",
    "LRSchedulerTypeTuple",
    "LRSchedulerTypeUnion",
    "OptimizerCallable",
    "ReduceLROnPlateau",
    "instantiate_class",
]


class ReduceLROnPlateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """Scheduler of torch that also knows which metric it watches.

    Args:
        optimizer: The optimizer.
        monitor: The name of the metric, as it was logged.
        args: As torch's takes them.
        kwargs: The same by keyword.
    """

    def __init__(self, optimizer: Optimizer, monitor: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(optimizer, *args, **kwargs)
        self.monitor = monitor


# Ours first: a name that both know means the one with a monitor. Annotations are read when parsers are made.
#: The classes of schedulers, for ``issubclass``.
LRSchedulerTypeTuple = (ReduceLROnPlateau, LRScheduler)
#: Type of a scheduler, for annotations.
LRSchedulerTypeUnion = Union[ReduceLROnPlateau, LRScheduler]  # noqa: UP007
#: Type of an argument that makes an optimizer of parameters: written as a class, with all arguments but these.
OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
#: Type of an argument that makes a scheduler of an optimizer: written as a class, with all arguments but this one.
LRSchedulerCallable = Callable[[Optimizer], LRSchedulerTypeUnion]


def instantiate_class(args: Any, init: Mapping[str, Any]) -> Any:
    """Return an instance of the class that a configuration names.

    Args:
        args: What the class takes by position: one value, or a tuple of several.
        init: The configuration: ``class_path``, and ``init_args`` for what it takes by keyword.

    Raises:
        ConfigError: If there is no such class.
    """
    cls = _named(init["class_path"])
    return cls(*(args if isinstance(args, tuple) else (args,)), **(init.get("init_args") or {}))


def _named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(Problem("instantiate_class", "class_path must name a class", path)) from error


class ConfiguredOptimizers:
    """Method ``configure_optimizers`` of a module whose optimizer a command line named.

    Optimizer and scheduler are made when the trainer asks, since the module may create layers up to then.

    Args:
        module: The module.
        configure: Takes module, optimizer and scheduler; returns what ``configure_optimizers`` may return.
        optimizer: Class path and arguments of the optimizer.
        scheduler: The same of the scheduler, or None.
    """

    def __init__(
        self, module: Any, configure: Callable[..., Any], optimizer: Mapping[str, Any], scheduler: Any
    ) -> None:
        self.module, self.configure, self.optimizer, self.scheduler = module, configure, optimizer, scheduler

    def __call__(self) -> Any:
        """Return what ``configure_optimizers`` returns."""
        by_rule = _named(self.optimizer["class_path"]) is ByRule  # its rules ask for names
        optimizer = instantiate_class((self.module if by_rule else self.module.parameters(),), self.optimizer)
        scheduler = instantiate_class(optimizer, self.scheduler) if self.scheduler else None
        return self.configure(self.module, optimizer, lr_scheduler=scheduler)
