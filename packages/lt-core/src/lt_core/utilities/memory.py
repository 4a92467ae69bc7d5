"""Memory of devices and of graphs."""

from __future__ import annotations

import gc
from typing import Any

import torch

from lt_core.data.nested import apply_to_collection
from lt_core.loops.trial import is_out_of_memory as is_oom_error

__all__ = ["garbage_collection_cuda", "is_oom_error", "recursive_detach"]


def recursive_detach(in_dict: Any, to_cpu: bool = False) -> Any:
    """Return nested collections with every tensor detached from its graph.

    Args:
        in_dict: A dict, or another collection or tensor.
        to_cpu: Whether the tensors come to the CPU, too.

    Example:
        >>> loss = torch.ones(1, requires_grad=True).sum()
        >>> recursive_detach({"loss": loss, "n": 3})
        {'loss': tensor(1.), 'n': 3}
    """
    return apply_to_collection(in_dict, torch.Tensor, lambda t: t.detach().cpu() if to_cpu else t.detach())


def garbage_collection_cuda() -> None:
    """Free what nothing refers to any more, and give the GPU's cached memory back; without a GPU only the former."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
