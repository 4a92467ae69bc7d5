"""Log to experiment trackers. Importing this imports no tracker and no torch.

Each logger is imported when it is first asked for, and only where its extra is installed.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lt_loggers.version import __version__

if TYPE_CHECKING:
    from lt_loggers.mlflow import MLFlowLogger
    from lt_loggers.tensorboard import TensorBoardLogger
    from lt_loggers.wandb import WandbLogger

__all__ = ["MLFlowLogger", "TensorBoardLogger", "WandbLogger", "__version__"]

# Where each one lives, which extra brings what it needs, and the packages of which one must be there.
_HOMES = {
    "MLFlowLogger": ("mlflow", "mlflow", ("mlflow",)),
    "TensorBoardLogger": ("tensorboard", "tensorboard", ("tensorboard", "tensorboardX")),
    "WandbLogger": ("wandb", "wandb", ("wandb",)),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, extra, packages = _HOMES[name]
    if not any(find_spec(package) for package in packages):
        from lt_loggers.arguments import missing

        raise missing(name, extra)
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
