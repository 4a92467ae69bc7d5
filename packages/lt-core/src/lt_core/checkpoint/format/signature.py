"""Distinguish models by the names and shapes of their tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["parameter_signature", "plain_name"]


def plain_name(name: str) -> str:
    """Return a tensor's name without what ``torch.compile`` puts before the names of a module that it wraps."""
    return name.replace("_orig_mod.", "")


def parameter_signature(state_dict: Mapping[str, Any]) -> str:
    """Return a short hash of the names and shapes of all tensors, the same for the same model."""
    digest = hashlib.sha256()
    for name in sorted(key for key, value in state_dict.items() if isinstance(value, torch.Tensor)):
        value = state_dict[name]
        name = plain_name(name)
        shape = "?" if torch.nn.parameter.is_lazy(value) else tuple(value.shape)
        digest.update(f"{name}{shape}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]
