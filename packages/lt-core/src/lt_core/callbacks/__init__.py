"""Callbacks: what to do besides training, each in a place of its own."""

from lt_core.callback import Callback
from lt_core.callbacks.accumulation import GradientAccumulationScheduler
from lt_core.callbacks.batch_size_finder import BatchSizeFinder
from lt_core.callbacks.checkpointing.callback import Checkpoint, ModelCheckpoint
from lt_core.callbacks.early_stopping import EarlyStopping
from lt_core.callbacks.lambda_function import LambdaCallback
from lt_core.callbacks.lr_finder import LearningRateFinder
from lt_core.callbacks.lr_monitor import LearningRateMonitor
from lt_core.callbacks.model_summary import ModelSummary, RichModelSummary
from lt_core.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from lt_core.callbacks.progress import ProgressBar, RichProgressBar
from lt_core.callbacks.timer import Timer
from lt_core.names import finder

__all__ = [
    "BatchSizeFinder",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateFinder",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "Timer",
]

__getattr__ = finder(__name__)
