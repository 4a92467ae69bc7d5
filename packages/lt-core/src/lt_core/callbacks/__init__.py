"""Callbacks: what to do besides training, each in a place of its own."""

from lt_core.callback import Callback
from lt_core.callbacks.batch_size_finder import BatchSizeFinder
from lt_core.callbacks.batch_transform import BatchTransform
from lt_core.callbacks.checkpointing.base import Checkpoint
from lt_core.callbacks.checkpointing.callback import ModelCheckpoint
from lt_core.callbacks.device_stats_monitor import DeviceStatsMonitor
from lt_core.callbacks.early_stopping import EarlyStopping
from lt_core.callbacks.finetuning import BackboneFinetuning, BaseFinetuning
from lt_core.callbacks.grad_norm import GradNorm
from lt_core.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from lt_core.callbacks.lambda_function import LambdaCallback
from lt_core.callbacks.lr_finder import LearningRateFinder
from lt_core.callbacks.lr_monitor import LearningRateMonitor
from lt_core.callbacks.model_summary import ModelSummary, RichModelSummary
from lt_core.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from lt_core.callbacks.optuna_pruning import OptunaPruning
from lt_core.callbacks.prediction_writer import BasePredictionWriter, PredictionWriter
from lt_core.callbacks.progress import ProgressBar, RichProgressBar, TQDMProgressBar
from lt_core.callbacks.pruning import ModelPruning
from lt_core.callbacks.restore_best import RestoreBest
from lt_core.callbacks.spike import SpikeDetection, TrainingSpikeException
from lt_core.callbacks.stochastic_weight_avg import StochasticWeightAveraging
from lt_core.callbacks.throughput_monitor import ThroughputMonitor
from lt_core.callbacks.timer import Timer
from lt_core.callbacks.weight_averaging import EMAWeightAveraging, WeightAveraging
from lt_core.names import finder

__all__ = [
    "BackboneFinetuning",
    "BaseFinetuning",
    "BasePredictionWriter",
    "BatchSizeFinder",
    "BatchTransform",
    "Callback",
    "Checkpoint",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "GradNorm",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateFinder",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelPruning",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "OptunaPruning",
    "PredictionWriter",
    "ProgressBar",
    "RestoreBest",
    "RichModelSummary",
    "RichProgressBar",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
    "TrainingSpikeException",
    "WeightAveraging",
]

__getattr__ = finder(__name__)
