"""Modules that are ready for the usual tasks: give the network, and fit."""

from lt_core.tasks.supervised import ClassificationModel, RegressionModel
from lt_core.tasks.wrapped import wrap

__all__ = ["ClassificationModel", "RegressionModel", "wrap"]
