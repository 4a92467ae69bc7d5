"""Regression and classification."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from lt_core.tasks.stages import Metric, OptimizerMaker, TaskModule
from lt_interface.errors import ConfigError, Problem

__all__ = ["ClassificationModel", "RegressionModel"]

Loss = Callable[[Tensor, Any], Tensor]


def _absolute_error(output: Tensor, target: Tensor) -> Tensor:
    return functional.l1_loss(output, target)


def _accuracy(output: Tensor, target: Tensor) -> Tensor:
    if _is_binary(output, target):
        return ((output > 0) == (target > 0.5)).float().mean()
    chosen = output.argmax(1)
    return (chosen == (target.argmax(1) if target.ndim == output.ndim else target)).float().mean()


def _is_binary(output: Tensor, target: Tensor) -> bool:
    return output.shape == target.shape and (output.ndim == 1 or output.shape[1] == 1)


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    if _is_binary(output, target):
        return functional.binary_cross_entropy_with_logits(output, target.to(output.dtype))
    return functional.cross_entropy(output, target)


class _Supervised(TaskModule):
    """Module with an output for each input, a loss of both and the target.

    Args:
        network: Maps an input to an output; a subclass may define ``forward`` instead.
        loss: The loss in place of the task's own.
        lr: Learning rate of AdamW.
        optimizer: Makes another optimizer of the parameters.
        metrics: What is logged beside the loss, in place of the task's own.

    Raises:
        ConfigError: If there is neither a network nor a ``forward``.
    """

    _loss: Loss
    _metrics_of_task: Mapping[str, Metric]

    def __init__(
        self,
        network: nn.Module | None = None,
        loss: Loss | None = None,
        lr: float = 1e-3,
        optimizer: OptimizerMaker | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__(lr, optimizer, self._metrics_of_task if metrics is None else metrics)
        name, own = type(self).__name__, type(self).forward is not _Supervised.forward
        if network is None and not own:
            fix = f"Write {name}(network), or give a subclass a forward(self, x)."
            raise ConfigError(Problem(name, "this needs a network", "none", fix))
        self.network = network
        self.loss: Loss = type(self)._loss if loss is None else loss

    def forward(self, x: Any) -> Any:
        """Return the network's output for an input ``x``."""
        return self.network(x)  # type: ignore[misc]

    def assess(self, batch: Any) -> tuple[Tensor, Any, Any]:
        """Return loss, output and target of a batch."""
        x, target = self.divide(batch)
        output = self(x)
        self._match(output, target)
        return self.loss(output, target), output, target

    def _match(self, output: Any, target: Any) -> None:
        """Refuse an output that does not fit the target; any does here."""


class RegressionModel(_Supervised):
    """Module that fits numbers: mean squared error as the loss, the mean absolute error beside it as ``mae``.

    Output and target must have one shape: ``(batch, 1)`` and ``(batch,)`` are refused, which torch would broadcast.

    Example:
        >>> class Line(RegressionModel):
        ...     def __init__(self):
        ...         super().__init__(lr=0.1)
        ...         self.layer = nn.Linear(2, 1)
        ...
        ...     def forward(self, x):
        ...         return self.layer(x)
        >>> Line().configure_optimizers().defaults["lr"]
        0.1
    """

    _loss = staticmethod(functional.mse_loss)
    _metrics_of_task = {"mae": _absolute_error}

    def _match(self, output: Any, target: Any) -> None:
        if isinstance(output, Tensor) and isinstance(target, Tensor) and output.shape != target.shape:
            where, got = f"{type(self).__name__}.forward", f"{tuple(output.shape)} and {tuple(target.shape)}"
            rule = "the output must have the target's shape"
            raise ConfigError(Problem(where, rule, got, "Write output.squeeze(1) or target.unsqueeze(1)."))


class ClassificationModel(_Supervised):
    """Module that assigns inputs to classes: cross-entropy as the loss, and the ``accuracy``.

    Outputs are logits ``(batch, classes, ...)``; targets are class indices, or probabilities of that shape. Logits of
    the targets' own shape with one column, or none, mean two classes.

    Example:
        >>> ClassificationModel(nn.Linear(4, 3)).network
        Linear(in_features=4, out_features=3, bias=True)
    """

    _loss = staticmethod(_cross_entropy)
    _metrics_of_task = {"accuracy": _accuracy}
