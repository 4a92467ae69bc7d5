"""Launchers of new processes: the conformance suite on two ranks."""

from __future__ import annotations

import errno
import socket
import sys
from typing import Any

import pytest
import torch.distributed as dist

from lt_accel.launchers.place import places
from lt_accel.launchers.processes import ForkLauncher, SpawnLauncher
from lt_interface import Plan
from lt_interface.testing import LauncherConformance


class TestFork(LauncherConformance):
    processes = 2

    def make(self) -> Any:
        return ForkLauncher()


class TestSpawn(LauncherConformance):
    processes = 2

    def make(self) -> Any:
        return SpawnLauncher()


@pytest.mark.skipif(sys.platform != "linux", reason="a port is held on Linux alone")
def test_the_port_is_nobody_elses_before_rank_0_listens() -> None:
    """The port that ranks are given can be taken by no other program, and rank 0 can listen on it."""
    first, second = (int(place["MASTER_PORT"]) for place in places(Plan(devices=(0, 1))))
    assert first == second
    with socket.socket() as other, pytest.raises(OSError) as refused:
        other.bind(("127.0.0.1", first))
    assert refused.value.errno == errno.EADDRINUSE
    kind: Any = dist.TCPStore  # type: ignore[attr-defined]
    held = kind("127.0.0.1", first, 1, True, wait_for_workers=False, multi_tenant=True)
    held.set("here", "rank 0")
    assert held.get("here") == b"rank 0"
