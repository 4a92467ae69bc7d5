"""What ready modules have in common: the four steps, the values they log, the optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lt_core.metrics.slot import is_metric_object
from lt_core.module import LightningModule
from lt_interface.errors import ConfigError, Problem

__all__ = ["Metric", "OptimizerMaker", "TaskModule"]

Metric = Callable[[Any, Any], Any]
OptimizerMaker = Callable[[Iterable[nn.Parameter]], Optimizer]
STAGES = ("train", "val", "test")


class TaskModule(LightningModule, ABC):
    """Base of ready modules: a subclass says how a batch is divided, and what its loss is.

    The loss is logged as ``train_loss``, ``val_loss`` and ``test_loss``, each metric by its name behind the same word.
    In validation and test they are means over all samples of all ranks. Steps use the ``batch``, not ``batch_idx``.

    Args:
        lr: Learning rate of AdamW.
        optimizer: Makes another optimizer of the parameters, such as ``lambda parameters: SGD(parameters, lr=0.1)``.
        metrics: Functions of output and target that return a batch's mean, or metric objects such as torchmetrics',
            by the name that they are logged under.

    Raises:
        ConfigError: If the learning rate is not above 0.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        optimizer: OptimizerMaker | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        if not lr > 0:
            raise ConfigError(Problem(f"{type(self).__name__}(lr)", "this must be above 0", repr(lr), "Write 1e-3."))
        self.lr = lr
        self._make_optimizer = optimizer
        given = dict(metrics or {})
        self._functions = {name: metric for name, metric in given.items() if not is_metric_object(metric)}
        self._objects = [name for name in given if name not in self._functions]
        for stage in STAGES:  # an object adds up what it is given
            for name in self._objects:
                setattr(self, f"{stage}_{name}", deepcopy(given[name]))

    def divide(self, batch: Any) -> tuple[Any, Any]:
        """Return a batch's input and target.

        Args:
            batch: What the loader gave.

        Raises:
            ConfigError: If it is no pair.
        """
        if isinstance(batch, list | tuple) and len(batch) == 2:
            return batch[0], batch[1]
        where, got = f"{type(self).__name__}.divide", type(batch).__name__
        got += f" of {len(batch)}" if hasattr(batch, "__len__") and not isinstance(batch, Tensor) else ""
        fix = "Let the dataset give (input, target), or override divide()."
        raise ConfigError(Problem(where, "a batch must be a pair of input and target", got, fix))

    @abstractmethod
    def assess(self, batch: Any) -> tuple[Tensor, Any, Any]:
        """Return the loss of a batch, with the output and the target for the metrics.

        Args:
            batch: What the loader gave.
        """

    def step(self, batch: Any, stage: str) -> Tensor:
        """Return the loss of a batch, and log it with the metrics.

        Args:
            batch: What the loader gave.
            stage: ``"train"``, ``"val"`` or ``"test"``.
        """
        loss, output, target = self.assess(batch)
        synced = stage != "train"
        self.log(f"{stage}_loss", loss, prog_bar=True, sync_dist=synced)
        detached = output.detach() if isinstance(output, Tensor) else output
        for name, function in self._functions.items():
            self.log(f"{stage}_{name}", function(detached, target), prog_bar=synced, sync_dist=synced)
        for name in self._objects:
            metric = getattr(self, f"{stage}_{name}")
            metric.update(detached, target)
            self.log(f"{stage}_{name}", metric, on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self.step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss and the metrics of a batch."""
        self.step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss and the metrics of a batch."""
        self.step(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the output for a batch: of inputs alone, or of pairs as in training."""
        if isinstance(batch, list | tuple):
            return self(batch[0] if len(batch) == 1 else self.divide(batch)[0])
        return self(batch)

    def configure_optimizers(self) -> Optimizer:
        """Return AdamW of the parameters that are trained, or what was given."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.lr) if self._make_optimizer is None else self._make_optimizer(trained)
