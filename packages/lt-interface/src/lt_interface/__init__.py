"""Protocols, errors and the plugin registry in which the trainer's packages meet.

Each name is imported from its module when it is first asked for: a logger that needs one
class does not pay for all of them.

Example:
    >>> from lt_interface import World
    >>> World(rank=1, size=2).is_global_zero
    False
"""

from typing import TYPE_CHECKING

from lt_interface.lazy import lazy

if TYPE_CHECKING:
    from lt_interface.abilities import *
    from lt_interface.accelerator import *
    from lt_interface.checkpoint import *
    from lt_interface.cluster import *
    from lt_interface.engine import *
    from lt_interface.errors import *
    from lt_interface.launcher import *
    from lt_interface.logger import *
    from lt_interface.plan import *
    from lt_interface.precision import *
    from lt_interface.profiler import *
    from lt_interface.ranks import *
    from lt_interface.registry import *
    from lt_interface.state import *
    from lt_interface.strategy import *
    from lt_interface.streams import *
    from lt_interface.version import *
    from lt_interface.whole import *
    from lt_interface.world import *
else:
    __all__, __getattr__, __dir__ = lazy(
        __name__,
        {
            "abilities": "Record SupportsAudio SupportsCheckpoints SupportsFigures SupportsForget SupportsGraph "
            "SupportsHistograms SupportsImages SupportsJoin SupportsRecords SupportsReplay SupportsRewind "
            "SupportsSharedVersion SupportsTables SupportsText SupportsVideo SupportsWatch",
            "accelerator": "Accelerator ChecksPlan DescribesDevices ExplainsErrors",
            "checkpoint": "CheckpointIO KeepsObjects RefusesValues SavesItself",
            "cluster": "ChecksWorld ClusterEnvironment WatchesTrainer as_cluster",
            "engine": "Engine PreparesBackward SkipsBatches WeighsBatches decides_by_closure",
            "errors": "CheckpointError ConfigError ConfigTypeError InterfaceVersionError LTError "
            "MisconfigurationException MissingPackageError PluginError Problem RankFailedError UnknownPluginError",
            "launcher": "Launcher Outcome Request",
            "logger": "Logger SupportsLogging",
            "plan": "Plan",
            "precision": "PlainPrecision Precision PreparesOptimizers TakesDevice",
            "profiler": "Profiler TakesFacts TakesModule",
            "ranks": "DummyExperiment is_rank_zero rank_zero_info rank_zero_only rank_zero_warn set_world",
            "registry": "Registry",
            "state": "Stateful Weights",
            "strategy": "BARRIER_SECONDS Collectives ComparesRanks PlainCollectives ReportsFailures Strategy "
            "StrategyVerbs",
            "streams": "SideStream SupportsSideStream",
            "version": "__version__",
            "whole": "WholeModuleStrategy",
            "world": "World",
        },
    )
