"""Bring an example input to where, and into the format in which, a module computes."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lt_core.data.nested import apply_to_collection, move_to_device

__all__ = ["placed"]


def placed(module: nn.Module, example: Any) -> Any:
    """Return arguments of a module's ``forward`` on its device and, as a batch would be, in its format.

    Args:
        module: The module. Floating-point tensors take the format of its parameters where that is one, and not torch's
            default: such a module was made or converted by a precision of one format throughout.
        example: Tensors in any nesting; it is left as it is.
    """
    first = next(chain(module.parameters(), module.buffers()), None)
    example = move_to_device(example, torch.device("cpu") if first is None else first.device)
    formats = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if len(formats) != 1 or torch.get_default_dtype() in formats:
        return example
    [dtype] = formats
    return apply_to_collection(example, Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t)
