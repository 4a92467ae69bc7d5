"""Define the protocols, errors and the plugin registry in which the trainer's packages meet."""

from lt_interface.accelerator import Accelerator
from lt_interface.checkpoint import CheckpointIO
from lt_interface.cluster import ClusterEnvironment
from lt_interface.engine import Engine
from lt_interface.errors import (
    CheckpointError,
    ConfigError,
    ConfigTypeError,
    InterfaceVersionError,
    LTError,
    MisconfigurationException,
    PluginError,
    Problem,
    UnknownPluginError,
)
from lt_interface.launcher import Launcher, Outcome
from lt_interface.logger import Logger, SupportsCheckpoints, SupportsGraph, SupportsLogging, SupportsRewind
from lt_interface.precision import Precision
from lt_interface.profiler import Profiler
from lt_interface.registry import Registry
from lt_interface.state import Plan, Stateful, World
from lt_interface.strategy import Collectives, Strategy
from lt_interface.version import __version__

__all__ = [
    "Accelerator",
    "CheckpointError",
    "CheckpointIO",
    "ClusterEnvironment",
    "Collectives",
    "ConfigError",
    "ConfigTypeError",
    "Engine",
    "InterfaceVersionError",
    "LTError",
    "Launcher",
    "Logger",
    "MisconfigurationException",
    "Outcome",
    "Plan",
    "PluginError",
    "Precision",
    "Problem",
    "Profiler",
    "Registry",
    "Stateful",
    "Strategy",
    "SupportsCheckpoints",
    "SupportsGraph",
    "SupportsLogging",
    "SupportsRewind",
    "UnknownPluginError",
    "World",
    "__version__",
]
