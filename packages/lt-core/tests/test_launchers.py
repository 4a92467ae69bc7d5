"""Launchers of a third party keep the interface's rules."""

from __future__ import annotations

from typing import Any

from processes import ForkLauncher, SpawnLauncher

from lt_interface.testing import LauncherConformance


class TestForkLauncher(LauncherConformance):
    def make(self) -> Any:
        return ForkLauncher()


class TestSpawnLauncher(LauncherConformance):
    def make(self) -> Any:
        return SpawnLauncher()
