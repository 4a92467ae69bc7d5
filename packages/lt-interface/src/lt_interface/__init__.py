"""Define the protocols, errors and the plugin registry in which the trainer's packages meet.

Each name is imported from its module when it is first asked for: a logger that needs one
class does not pay for all of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lt_interface.version import __version__

if TYPE_CHECKING:
    from lt_interface.abilities import (
        Record,
        SupportsAudio,
        SupportsCheckpoints,
        SupportsFigures,
        SupportsGraph,
        SupportsHistograms,
        SupportsImages,
        SupportsJoin,
        SupportsRecords,
        SupportsReplay,
        SupportsRewind,
        SupportsSharedVersion,
        SupportsTables,
        SupportsText,
        SupportsVideo,
        SupportsWatch,
    )
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
        MissingPackageError,
        PluginError,
        Problem,
        UnknownPluginError,
    )
    from lt_interface.launcher import Launcher, Outcome
    from lt_interface.logger import Logger, SupportsLogging
    from lt_interface.precision import Precision
    from lt_interface.profiler import Profiler
    from lt_interface.ranks import DummyExperiment, is_rank_zero, rank_zero_only
    from lt_interface.registry import Registry
    from lt_interface.state import Plan, Stateful, World
    from lt_interface.strategy import Collectives, Strategy

__all__ = [
    "Accelerator",
    "CheckpointError",
    "CheckpointIO",
    "ClusterEnvironment",
    "Collectives",
    "ConfigError",
    "ConfigTypeError",
    "DummyExperiment",
    "Engine",
    "InterfaceVersionError",
    "LTError",
    "Launcher",
    "Logger",
    "MisconfigurationException",
    "MissingPackageError",
    "Outcome",
    "Plan",
    "PluginError",
    "Precision",
    "Problem",
    "Profiler",
    "Record",
    "Registry",
    "Stateful",
    "Strategy",
    "SupportsAudio",
    "SupportsCheckpoints",
    "SupportsFigures",
    "SupportsGraph",
    "SupportsHistograms",
    "SupportsImages",
    "SupportsJoin",
    "SupportsLogging",
    "SupportsRecords",
    "SupportsReplay",
    "SupportsRewind",
    "SupportsSharedVersion",
    "SupportsTables",
    "SupportsText",
    "SupportsVideo",
    "SupportsWatch",
    "UnknownPluginError",
    "World",
    "__version__",
    "is_rank_zero",
    "rank_zero_only",
]

_HOMES = {
    "Accelerator": "accelerator",
    "CheckpointError": "errors",
    "CheckpointIO": "checkpoint",
    "ClusterEnvironment": "cluster",
    "Collectives": "strategy",
    "ConfigError": "errors",
    "ConfigTypeError": "errors",
    "DummyExperiment": "ranks",
    "Engine": "engine",
    "InterfaceVersionError": "errors",
    "LTError": "errors",
    "Launcher": "launcher",
    "Logger": "logger",
    "MisconfigurationException": "errors",
    "MissingPackageError": "errors",
    "Outcome": "launcher",
    "Plan": "state",
    "PluginError": "errors",
    "Precision": "precision",
    "Problem": "errors",
    "Profiler": "profiler",
    "Record": "abilities",
    "Registry": "registry",
    "Stateful": "state",
    "Strategy": "strategy",
    "SupportsAudio": "abilities",
    "SupportsCheckpoints": "abilities",
    "SupportsFigures": "abilities",
    "SupportsGraph": "abilities",
    "SupportsHistograms": "abilities",
    "SupportsImages": "abilities",
    "SupportsJoin": "abilities",
    "SupportsLogging": "logger",
    "SupportsRecords": "abilities",
    "SupportsReplay": "abilities",
    "SupportsRewind": "abilities",
    "SupportsSharedVersion": "abilities",
    "SupportsTables": "abilities",
    "SupportsText": "abilities",
    "SupportsVideo": "abilities",
    "SupportsWatch": "abilities",
    "UnknownPluginError": "errors",
    "World": "state",
    "is_rank_zero": "ranks",
    "rank_zero_only": "ranks",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
