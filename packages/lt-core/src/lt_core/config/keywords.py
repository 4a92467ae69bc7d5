"""Answer a keyword that a method does not have with the name that was meant.

Such a method takes ``**_unknown``, which its signature does not show. A wrapper would do the same with a frame more in
every traceback that ends in the user's step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lt_core.config.flags import FLAGS
from lt_core.config.legacy import ADVICE
from lt_interface.errors import Problem, nearest, raise_problems

__all__ = ["answers_unknown", "refuse_unknown"]

F = TypeVar("F", bound=Callable[..., Any])
# What other programs call an argument, where the spelling alone does not lead to ours.
_MEANT = {
    **dict.fromkeys(("checkpoint", "checkpoint_path", "resume", "resume_from_checkpoint", "ckpt"), "ckpt_path"),
    **dict.fromkeys(("data", "dm"), "datamodule"),
    **dict.fromkeys(("module", "net", "network", "pl_module", "lightning_module"), "model"),
}


def answers_unknown(method: F) -> F:
    """Take the last, catching parameter out of what a method shows as its signature."""
    shown: Any = method
    signature = inspect.signature(method)
    shown.__signature__ = signature.replace(parameters=list(signature.parameters.values())[:-1])
    shown.__annotations__.pop("_unknown")
    return method


def refuse_unknown(method: Callable[..., Any], unknown: Mapping[str, Any]) -> None:
    """Raise one error for all keywords that a method of the trainer does not have; nothing where there are none.

    Args:
        method: The method.
        unknown: What it was given beside its own parameters, by name.

    Raises:
        ConfigTypeError: If there is any; it is a TypeError, as Python's own.
    """
    if unknown:
        known = [name for name in inspect.signature(method).parameters if name != "self"]
        where = f"Trainer.{method.__name__}"
        rule = "there is no argument of that name"
        raise_problems([Problem(f"{where}({name}=...)", rule, "", _fix(name, known), True) for name in unknown])


def _fix(name: str, known: list[str]) -> str:
    meant = _MEANT.get(name)
    if meant in known:
        return f'Did you mean "{meant}"?'
    near = nearest(name, known)
    if near:
        return near
    if name in FLAGS or name in ADVICE:
        return ADVICE.get(name) or f"It is a flag: Trainer({name}=...)."
    return f"It takes {', '.join(known)}."
