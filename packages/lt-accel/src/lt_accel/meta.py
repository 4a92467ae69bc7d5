"""Give memory to modules that were built on the meta device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lt_interface import MisconfigurationException

__all__ = ["materialise"]


def materialise(module: nn.Module, device: torch.device, loads_weights: bool) -> None:
    """Give memory on a device to the tensors that a module has on the meta device; tied parameters stay tied.

    Args:
        module: The module.
        device: Where to.
        loads_weights: Whether weights are loaded next; else each part that was empty calls its ``reset_parameters``.

    Raises:
        MisconfigurationException: If such a part has no ``reset_parameters``.
    """
    empty = {n: m for n, m in module.named_modules() if any(t.is_meta for t in _own(m))}
    made: dict[int, Tensor] = {}
    for part in empty.values():
        for tensors in (part._parameters, part._buffers):
            for name, old in list(tensors.items()):
                if old is not None and old.is_meta:
                    made.setdefault(id(old), torch.empty_like(old, device=device))
                    new = made[id(old)]
                    if isinstance(old, nn.Parameter) and not isinstance(new, nn.Parameter):
                        new = made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad)
                    setattr(part, name, new)
    blank = [name or type(part).__name__ for name, part in empty.items() if not hasattr(part, "reset_parameters")]
    if blank and not loads_weights:
        raise MisconfigurationException(
            f"{type(module).__name__}: modules built on the meta device need weights. Got none for {', '.join(blank)}. "
            "Give them a reset_parameters() method, or load a checkpoint."
        )
    for part in empty.values():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()


def _own(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]
