"""Types that users write in signatures, under the path that their imports name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lt_core.names import finder
from lt_core.optim.parse import SchedulerConfig as LRSchedulerConfig

__all__ = [
    "EVAL_DATALOADERS",
    "STEP_OUTPUT",
    "TRAIN_DATALOADERS",
    "LRSchedulerConfig",
    "LRSchedulerConfigType",
    "LRSchedulerPLType",
    "LRSchedulerTypeUnion",
    "OptimizerConfig",
    "OptimizerLRScheduler",
    "OptimizerLRSchedulerConfig",
]

__getattr__ = finder(__name__)

#: Type of what a step returns.
STEP_OUTPUT = Tensor | Mapping[str, Any] | None
#: Type of what ``train_dataloader`` returns.
TRAIN_DATALOADERS = Any
#: Type of what the other loader hooks return.
EVAL_DATALOADERS = Any
#: Type of a scheduler.
LRSchedulerTypeUnion = LRScheduler | ReduceLROnPlateau
#: Type of a scheduler, by another name.
LRSchedulerPLType = LRSchedulerTypeUnion


class LRSchedulerConfigType(TypedDict, total=False):
    """Dict that says when and how a scheduler steps, as ``configure_optimizers`` returns it."""

    scheduler: Any
    name: str | None
    interval: str
    frequency: int
    reduce_on_plateau: bool
    monitor: str | None
    strict: bool


class OptimizerConfig(TypedDict):
    """Dict with an optimizer alone."""

    optimizer: Optimizer


class OptimizerLRSchedulerConfig(TypedDict):
    """Dict with an optimizer and its scheduler."""

    optimizer: Optimizer
    lr_scheduler: LRSchedulerTypeUnion | LRSchedulerConfigType


#: Type of what ``configure_optimizers`` returns.
OptimizerLRScheduler = (
    Optimizer
    | Sequence[Optimizer]
    | tuple[Sequence[Optimizer], Sequence[LRSchedulerTypeUnion | LRSchedulerConfigType]]
    | OptimizerConfig
    | OptimizerLRSchedulerConfig
    | Sequence[OptimizerConfig | OptimizerLRSchedulerConfig]
    | None
)
