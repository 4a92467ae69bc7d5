"""Launchers of new processes: the conformance suite on two ranks."""

from __future__ import annotations

from typing import Any

from lt_accel.launchers.processes import ForkLauncher, SpawnLauncher
from lt_interface.testing import LauncherConformance


class TestFork(LauncherConformance):
    processes = 2

    def make(self) -> Any:
        return ForkLauncher()


class TestSpawn(LauncherConformance):
    processes = 2

    def make(self) -> Any:
        return SpawnLauncher()
