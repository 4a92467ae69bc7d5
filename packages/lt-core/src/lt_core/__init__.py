"""Train PyTorch models without writing the loop."""

from lt_core.callback import Callback
from lt_core.data.combined import CombinedLoader
from lt_core.datamodule import LightningDataModule
from lt_core.module import LightningModule
from lt_core.names import finder
from lt_core.state.rng import seed_everything
from lt_core.trainer import Trainer
from lt_core.version import __version__
from lt_interface.errors import MisconfigurationException

__all__ = [
    "Callback",
    "CombinedLoader",
    "LightningDataModule",
    "LightningModule",
    "MisconfigurationException",
    "Trainer",
    "__version__",
    "seed_everything",
]

__getattr__ = finder(__name__)
