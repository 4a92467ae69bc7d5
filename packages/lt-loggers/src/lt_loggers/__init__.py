"""Log to experiment trackers. Importing this imports no tracker and no torch.

Each logger is imported when it is first asked for; one whose extra is not installed reports that when it is made.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lt_loggers.version import __version__

if TYPE_CHECKING:
    from lt_loggers.mlflow import MLFlowLogger
    from lt_loggers.tensorboard import TensorBoardLogger
    from lt_loggers.wandb import WandbLogger

__all__ = ["MLFlowLogger", "TensorBoardLogger", "WandbLogger", "__version__"]

_HOMES = {"MLFlowLogger": "mlflow", "TensorBoardLogger": "tensorboard", "WandbLogger": "wandb"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
