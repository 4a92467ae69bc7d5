"""Norms of gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lt_interface.errors import ConfigError, Problem

__all__ = ["grad_norm", "norm_order"]


def norm_order(norm_type: float | int | str, where: str) -> float:
    """Return the order of a norm as a number.

    Args:
        norm_type: A number, or ``"inf"``.
        where: How the error names it.

    Raises:
        ConfigError: If the order is not above 0.
    """
    try:
        order = float(norm_type)
    except (TypeError, ValueError):
        order = 0.0
    if not order > 0:
        raise ConfigError(Problem(where, "the order must be above 0", repr(norm_type), "Write 2."))
    return order


def grad_norm(module: nn.Module, norm_type: float | int | str, group_separator: str = "/") -> dict[str, Tensor]:
    """Return the norm of each parameter's gradient and of all together, by names to log them under.

    Nothing waits for the device.

    Args:
        module: The module; parameters without a gradient are left out.
        norm_type: The order of the norm, such as 2 or ``"inf"``.
        group_separator: What stands between ``grad_2.0_norm`` and a parameter's name, for trackers that group by it.

    Raises:
        ConfigError: If the order is not above 0.

    Example:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> layer.weight.grad = torch.tensor([[3.0, 4.0]])
        >>> {name: float(norm) for name, norm in grad_norm(layer, 2).items()}
        {'grad_2.0_norm/weight': 5.0, 'grad_2.0_norm_total': 5.0}
    """
    order = norm_order(norm_type, "grad_norm(norm_type)")
    named = [(name, p.grad.detach()) for name, p in module.named_parameters() if p.grad is not None]
    norms = {f"grad_{order}_norm{group_separator}{name}": torch.linalg.vector_norm(grad, order) for name, grad in named}
    if norms:
        first = next(iter(norms.values()))
        norms[f"grad_{order}_norm_total"] = torch.linalg.vector_norm(
            torch.stack([norm.to(first.device) for norm in norms.values()]), order
        )
    return norms
