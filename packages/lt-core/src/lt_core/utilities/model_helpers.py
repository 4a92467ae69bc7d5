"""Questions about users' classes."""

from __future__ import annotations

from typing import Any

from lt_core.callback import Callback
from lt_core.datamodule import LightningDataModule
from lt_core.hooks.table import overrides
from lt_core.module import LightningModule

__all__ = ["is_overridden"]


def is_overridden(method_name: str, instance: object = None, parent: type[Any] | None = None) -> bool:
    """Return whether an object has a method of its own in place of its base's.

    Args:
        method_name: The method's name.
        instance: The object; None has nothing.
        parent: The base; by default that of modules, data modules or callbacks.

    Example:
        >>> is_overridden("training_step", LightningModule())
        False
    """
    if parent is None and isinstance(instance, LightningModule | LightningDataModule | Callback):
        return overrides(instance, method_name)
    base, own = getattr(parent, method_name, None), getattr(type(instance), method_name, None)
    return method_name in vars(instance) if own is base and instance is not None else own is not None
