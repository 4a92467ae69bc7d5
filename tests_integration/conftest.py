"""Give every test its own folder to run in, and the checks of `ci` as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from lt_interface.testing.schedulers import environment

__all__ = ["environment"]

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests_integration"))  # for what several test files share


@pytest.fixture
def root() -> Path:
    """Return the repository's folder."""
    return ROOT


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in an empty folder, so that what the defaults write lands there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return a function that imports one of the programs in `ci`."""
    monkeypatch.syspath_prepend(str(ROOT / "ci"))

    def load(name: str) -> ModuleType:
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    return load
