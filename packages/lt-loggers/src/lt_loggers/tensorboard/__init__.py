"""TensorBoard: its logger, and what the logger is made of."""

from lt_loggers.tensorboard.logger import TensorBoardLogger

__all__ = ["TensorBoardLogger"]
