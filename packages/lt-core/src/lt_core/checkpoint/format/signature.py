"""Distinguish models by the names and shapes of their tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["parameter_signature", "plain_name", "signature_of"]


def plain_name(name: str) -> str:
    """Return a tensor's name without what ``torch.compile`` puts before the names of a module that it wraps."""
    return name.replace("_orig_mod.", "")


def parameter_signature(state_dict: Mapping[str, Any]) -> str:
    """Return a short hash of the names and shapes of all tensors, the same for the same model.

    Args:
        state_dict: The tensors by name; what is none is left out.
    """
    tensors = {name: value for name, value in state_dict.items() if isinstance(value, torch.Tensor)}
    is_lazy = torch.nn.parameter.is_lazy
    return signature_of({name: "?" if is_lazy(value) else tuple(value.shape) for name, value in tensors.items()})


def signature_of(shapes: Mapping[str, Any]) -> str:
    """Return the `parameter_signature` of tensors with these shapes by name."""
    digest = hashlib.sha256()
    for name in sorted(shapes):
        digest.update(f"{plain_name(name)}{shapes[name]}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]
