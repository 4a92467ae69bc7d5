"""Log how large the gradients are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.utils import get_total_norm

from lt_core.callback import Callback
from lt_core.optim.grads import grad_norm, norm_order

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["GradNorm"]


class GradNorm(Callback):
    """Callback that logs the norm of the gradients before each optimizer step, before they are clipped.

    Gradients are those of the step: of its whole window, averaged over the ranks, and without a loss scale. The names
    are those of `lt_core.utilities.grad_norm`, such as ``grad_2.0_norm_total``. Nothing waits for the device.

    Args:
        norm_type: The order of the norm, such as 2 or ``"inf"``.
        per_parameter: Whether the norm of each parameter's gradient is logged, too.
        prog_bar: Whether the progress bar shows the norm of all.

    Raises:
        ConfigError: If the order is not above 0.

    Example:
        >>> from lt_core import Trainer
        >>> from lt_core.callbacks import GradNorm
        >>> trainer = Trainer(callbacks=[GradNorm(norm_type=2)], gradient_clip_val=1.0)
    """

    def __init__(self, norm_type: float | int | str = 2, per_parameter: bool = False, prog_bar: bool = False) -> None:
        self.norm_type = norm_order(norm_type, "GradNorm(norm_type)")
        self.per_parameter = per_parameter
        self.prog_bar = prog_bar

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log the norms."""
        total = f"grad_{self.norm_type}_norm_total"
        if self.per_parameter:
            norms = grad_norm(pl_module, self.norm_type)
        else:
            grads = [p.grad.detach() for p in pl_module.parameters() if p.grad is not None]
            norms = {total: get_total_norm(grads, self.norm_type)} if grads else {}
        for name, norm in norms.items():
            pl_module.log(name, norm, prog_bar=self.prog_bar and name == total)
