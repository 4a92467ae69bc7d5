"""Conformance suites that test a plugin against the interface: subclass one, name the plugin, run pytest.

A plugin's whole test of the interface may be::

    from lt_interface.testing import LoggerConformance

    class TestMyLogger(LoggerConformance):
        plugin = "mine"

Every suite has a ``make`` to override where the plugin's constructor needs arguments. A
subclass may add tests; it may not replace one of the suite.
"""

import pytest

pytest.register_assert_rewrite(
    "lt_interface.testing.accelerator",
    "lt_interface.testing.checkpoint",
    "lt_interface.testing.cluster",
    "lt_interface.testing.collectives",
    "lt_interface.testing.engine",
    "lt_interface.testing.launcher",
    "lt_interface.testing.logger",
    "lt_interface.testing.logger_records",
    "lt_interface.testing.precision",
    "lt_interface.testing.profiler",
    "lt_interface.testing.strategy",
    "lt_interface.testing.training",
)

from lt_interface.testing.accelerator import AcceleratorConformance  # noqa: E402 - rewritten asserts first
from lt_interface.testing.checkpoint import CheckpointIOConformance  # noqa: E402
from lt_interface.testing.cluster import ClusterConformance  # noqa: E402
from lt_interface.testing.collectives import CollectivesConformance  # noqa: E402
from lt_interface.testing.engine import EngineConformance  # noqa: E402
from lt_interface.testing.launcher import LauncherConformance  # noqa: E402
from lt_interface.testing.logger import LoggerConformance  # noqa: E402
from lt_interface.testing.precision import PrecisionConformance  # noqa: E402
from lt_interface.testing.profiler import ProfilerConformance  # noqa: E402
from lt_interface.testing.strategy import StrategyConformance  # noqa: E402
from lt_interface.testing.suite import Conformance  # noqa: E402

__all__ = [
    "AcceleratorConformance",
    "CheckpointIOConformance",
    "ClusterConformance",
    "CollectivesConformance",
    "Conformance",
    "EngineConformance",
    "LauncherConformance",
    "LoggerConformance",
    "PrecisionConformance",
    "ProfilerConformance",
    "StrategyConformance",
]
