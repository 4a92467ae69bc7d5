"""Construct modules without filling their weights, and give memory to those that have none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lt_interface import MisconfigurationException

__all__ = ["NoInit", "materialise"]

_RANDOM_FILLS = frozenset({Tensor.uniform_, Tensor.normal_})


class NoInit(TorchFunctionMode):
    """Mode that skips ``torch.nn.init`` and random in-place fills, for weights that will be loaded."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Return the tensor itself from an initialiser, and call everything else."""
        kwargs = kwargs or {}
        if func in _RANDOM_FILLS or getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def materialise(module: nn.Module, device: torch.device, loads_weights: bool) -> None:
    """Give memory on ``device`` to the tensors that the module has on the meta device, in place.

    Tied parameters stay tied. A submodule that was empty calls its ``reset_parameters``.

    Raises:
        MisconfigurationException: If a submodule has no ``reset_parameters`` and no weights
            will be loaded, so that its values would be whatever lay in memory.
    """
    made: dict[int, Tensor] = {}
    blank: list[str] = []
    for name, part in module.named_modules():
        if not _fill(part, device, made):
            continue
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
        elif not loads_weights:
            blank.append(name or type(part).__name__)
    if blank:
        raise MisconfigurationException(
            f"{type(module).__name__}: modules built on the meta device need weights. Got none for {', '.join(blank)}. "
            "Give them a reset_parameters() method, or load a checkpoint."
        )


def _fill(part: nn.Module, device: torch.device, made: dict[int, Tensor]) -> bool:
    """Replace the meta tensors of one module; return whether it had any."""
    found = False
    for tensors in (part._parameters, part._buffers):
        for name, old in list(tensors.items()):
            if old is None or old.device.type != "meta":
                continue
            found = True
            new = made.get(id(old))
            if new is None:
                new = torch.empty_like(old, device=device)
                if isinstance(old, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=old.requires_grad)
                made[id(old)] = new
            setattr(part, name, new)
    return found
