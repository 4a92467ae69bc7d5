"""Find a learning rate and a batch size before training."""

from lt_core.names import finder
from lt_core.tuner.tuning import Tuner

__all__ = ["Tuner"]

__getattr__ = finder(__name__)
