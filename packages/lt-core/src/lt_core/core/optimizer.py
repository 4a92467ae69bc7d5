"""The optimizers' wrapper, under the path that users' imports name."""

from lt_core.optim.wrapper import LightningOptimizer

__all__ = ["LightningOptimizer"]
