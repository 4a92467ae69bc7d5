"""Errors that name the batch and the submodule with the first value that is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lt_core.data.nested import leaves
from lt_interface.errors import LTError, Problem

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["NonFiniteLossError", "raise_for_loss"]


class NonFiniteLossError(LTError, ValueError):
    """Loss that is nan or inf, with its batch and the place that it came from."""


def _finite(value: Any) -> bool:
    """Return whether all floating-point tensors in nested collections are finite."""
    found = (leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return all(bool(torch.isfinite(tensor).all()) for tensor in found)


def raise_for_loss(run: Run, training_step: Callable[..., Any], batch: Any, index: int, loss: Tensor) -> None:
    """Run the step once more under watch and raise an error that names the batch and the first bad module.

    Where every rank must run forward equally often, it is not run once more.

    Raises:
        NonFiniteLossError: Always.
    """
    bad: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not bad and not _finite(output):
                bad.append(f"{name} ({type(module).__name__})")

        return hook

    parameters = [n for n, p in run.module.named_parameters() if not _finite(p)]
    handles = [m.register_forward_hook(watch(n)) for n, m in run.module.named_modules() if n]
    looks = run.world.size == 1 or not run.strategy.collective_forward
    try:
        with run.metrics.train.mute(), torch.no_grad():
            if looks:
                training_step(batch, index)
    finally:
        for handle in handles:
            handle.remove()
    source = f"module {bad[0]}" if bad else "the loss function itself: no submodule's output is at fault"
    if not looks:
        source = "a place that one rank alone cannot look for, since every rank must run forward equally often"
    if not _finite(batch):
        source += "; the batch itself holds values that are not finite"
    if parameters:
        source += f"; parameters not finite: {', '.join(parameters[:5])}"
    raise NonFiniteLossError(
        str(
            Problem(
                f"{type(run.module).__name__}.training_step, epoch {run.progress.epoch}, batch {index}",
                "the loss must be finite",
                f"{loss.detach().flatten()[0].item()}, first from {source}",
                "Lower the learning rate, clip gradients, or look at this batch.",
            )
        )
    )
