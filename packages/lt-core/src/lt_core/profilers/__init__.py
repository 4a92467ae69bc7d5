"""Measure how long the actions of a run take, and say what to do about it."""

from lt_core.names import finder
from lt_core.profilers.advanced import AdvancedProfiler
from lt_core.profilers.base import PassThroughProfiler, Profiler
from lt_core.profilers.pytorch import PyTorchProfiler
from lt_core.profilers.simple import SimpleProfiler
from lt_core.profilers.verdict import Verdict

__all__ = ["AdvancedProfiler", "PassThroughProfiler", "Profiler", "PyTorchProfiler", "SimpleProfiler", "Verdict"]

__getattr__ = finder(__name__)
