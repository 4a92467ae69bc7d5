"""Weights & Biases: its logger, and what the logger is made of."""

from lt_loggers.wandb.logger import WandbLogger

__all__ = ["WandbLogger"]
