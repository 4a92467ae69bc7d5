"""Give the tests a machine with cards that are not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from machines import FakeMachine

from lt_interface.testing.schedulers import environment

__all__ = ["environment", "machine"]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMachine:
    """Return a machine with two cards of one kind."""
    return FakeMachine(monkeypatch, tmp_path)
