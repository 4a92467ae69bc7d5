"""The trainer: its flags and entry points, and what it shows of a run."""

from lt_core.trainer.trainer import Trainer

__all__ = ["Trainer"]
