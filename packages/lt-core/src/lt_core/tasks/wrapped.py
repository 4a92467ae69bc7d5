"""Any network as a module that the trainer takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from lt_core.module import LightningModule
from lt_core.tasks.stages import Metric, OptimizerMaker, TaskModule
from lt_interface.errors import ConfigError, Problem

__all__ = ["wrap"]


def wrap(
    module: nn.Module,
    loss: Callable[[Any, Any], Tensor] | None = None,
    *,
    lr: float = 1e-3,
    optimizer: OptimizerMaker | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> LightningModule:
    """Return a module that trains a network; the network's own weights are trained, and it may be used as before.

    With a loss, a batch is a pair of input and target. Without one the network computes its loss itself, as those of
    Hugging Face do: a batch that is a mapping is given as keyword arguments, a tuple or list as positional ones, and
    the output must have ``loss``.

    Args:
        module: The network.
        loss: A function of output and target.
        lr: Learning rate of AdamW.
        optimizer: Makes another optimizer of the parameters.
        metrics: Functions of output and target, or metric objects, by the name that they are logged under.

    Raises:
        ConfigError: If the network is no ``nn.Module``.

    Example:
        >>> wrap(nn.Linear(2, 1), loss=nn.functional.mse_loss).lr
        0.001
    """
    if not isinstance(module, nn.Module) or isinstance(module, LightningModule):
        fix = "Give it to Trainer.fit as it is." if isinstance(module, nn.Module) else "Give an nn.Module."
        raise ConfigError(Problem("wrap(module)", "this must be a plain network", type(module).__name__, fix))
    return _Wrapped(module, loss, lr, optimizer, metrics)


class _Wrapped(TaskModule):
    """Module around a network.

    Args:
        module: The network.
        loss: A function of output and target, or None.
        lr: Learning rate of AdamW.
        optimizer: Makes another optimizer.
        metrics: What is logged beside the loss.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Any, Any], Tensor] | None,
        lr: float,
        optimizer: OptimizerMaker | None,
        metrics: Mapping[str, Metric] | None,
    ) -> None:
        super().__init__(lr, optimizer, metrics)
        self.module, self._loss = module, loss

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's output."""
        return self.module(*args, **kwargs)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the network's output for a batch."""
        return self._called(batch) if self._loss is None else super().predict_step(batch, batch_idx)

    def assess(self, batch: Any) -> tuple[Tensor, Any, Any]:
        """Return loss, output and target of a batch.

        Raises:
            ConfigError: If the network should have computed a loss and has not.
        """
        if self._loss is not None:
            x, target = self.divide(batch)
            output = self(x)
            return self._loss(output, target), output, target
        output = self._called(batch)
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if not isinstance(loss, Tensor):
            where, got = f"wrap({type(self.module).__name__})", type(output).__name__
            fix = "Give wrap a loss, or the batch what the network needs for its own, such as labels."
            raise ConfigError(Problem(where, "the network's output must have a loss", f"{got} without one", fix))
        return loss, output, batch.get("labels") if isinstance(batch, Mapping) else None

    def _called(self, batch: Any) -> Any:
        if isinstance(batch, Mapping):
            return self(**batch)
        return self(*batch) if isinstance(batch, list | tuple) else self(batch)
