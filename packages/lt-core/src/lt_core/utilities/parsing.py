"""Hyper-parameters as attributes, and attributes wherever users keep them."""

from __future__ import annotations

import pickle
from typing import Any

from lt_core.model.attribute import Attribute
from lt_core.model.hparams import AttributeDict
from lt_core.names import finder

__all__ = ["AttributeDict", "is_picklable", "lightning_getattr", "lightning_hasattr", "lightning_setattr"]

__getattr__ = finder(__name__)


def is_picklable(obj: object) -> bool:
    """Return whether an object can be pickled.

    Args:
        obj: The object.

    Example:
        >>> is_picklable([1]), is_picklable(lambda: 1)
        (True, False)
    """
    try:
        pickle.dumps(obj)
    except Exception:  # whatever its __reduce__ raises
        return False
    return True


def _attribute(model: Any, name: str) -> Attribute:
    trainer = getattr(model, "_trainer", None)
    return Attribute(name, model, getattr(trainer, "datamodule", None))


def lightning_hasattr(model: Any, attribute: str) -> bool:
    """Return whether a module, its data module or their hyper-parameters have an attribute.

    Args:
        model: The module.
        attribute: The name, or a dotted path.
    """
    return _attribute(model, attribute).found


def lightning_getattr(model: Any, attribute: str) -> Any:
    """Return an attribute of a module, its data module or their hyper-parameters.

    Args:
        model: The module.
        attribute: The name, or a dotted path.

    Raises:
        AttributeError: If none of them has it.
    """
    return _found(model, attribute).get()


def lightning_setattr(model: Any, attribute: str, value: Any) -> None:
    """Set an attribute wherever a module, its data module or their hyper-parameters have it.

    Args:
        model: The module.
        attribute: The name, or a dotted path.
        value: The new value.

    Raises:
        AttributeError: If none of them has it.
    """
    _found(model, attribute).set(value)


def _found(model: Any, name: str) -> Attribute:
    attribute = _attribute(model, name)
    if not attribute.found:
        raise AttributeError(f"{type(model).__name__}, its data module and their hparams have no {name!r}")
    return attribute
