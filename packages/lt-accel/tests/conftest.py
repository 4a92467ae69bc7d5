"""Give the tests a machine with cards that are not there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from machines import FakeMachine
from schedulers import NAMES, STARTS


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMachine:
    """Return a machine with two cards of one kind."""
    return FakeMachine(monkeypatch, tmp_path)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Return a function that sets environment variables, those of schedulers removed."""
    for name in list(os.environ):
        if name.startswith(STARTS) or name in NAMES:
            monkeypatch.delenv(name)

    def put(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put
