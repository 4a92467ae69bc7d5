"""Counts of floating-point operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lt_core.model.throughput import Throughput, get_available_flops

__all__ = ["Throughput", "get_available_flops", "measure_flops"]


def measure_flops(
    model: nn.Module, forward_fn: Callable[[], Tensor], loss_fn: Callable[[Tensor], Tensor] | None = None
) -> int:
    """Return the floating-point operations of a forward pass, and of the backward pass of its loss if there is one.

    Counted by torch's ``FlopCounterMode``: matrix products, convolutions and attention. On the ``meta`` device nothing
    is computed.

    Args:
        model: The model that the function runs; it is put into train mode meanwhile.
        forward_fn: Runs it on a batch and returns its output.
        loss_fn: Returns a loss for that output.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model, x = torch.nn.Linear(3, 4), torch.randn(2, 3)
        >>> measure_flops(model, lambda: model(x))
        48
        >>> measure_flops(model, lambda: model(x), lambda y: y.sum())
        96
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter: Any = FlopCounterMode(display=False)
    modes = [(child, child.training) for child in model.modules()]
    model.train()
    try:
        with counter:
            output = forward_fn()
            if loss_fn is not None:
                loss_fn(output).backward()  # type: ignore[no-untyped-call]
    finally:
        for child, mode in modes:
            child.training = mode
    return int(counter.get_total_flops())
