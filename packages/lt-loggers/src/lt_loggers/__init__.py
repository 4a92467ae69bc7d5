"""Log to experiment trackers. Importing this imports no tracker and no torch."""

from lt_loggers.tensorboard import TensorBoardLogger
from lt_loggers.version import __version__

__all__ = ["TensorBoardLogger", "__version__"]
