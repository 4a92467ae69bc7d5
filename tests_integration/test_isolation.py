"""Train where nothing may be imported but what lt-core declares."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def test_core_trains_with_only_what_it_declares(root: Path) -> None:
    """lt-core trains, saves and resumes although every other installed package is out of reach."""
    done = subprocess.run(
        [sys.executable, str(root / "ci" / "isolation.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "lt-core trained with" in done.stdout


def test_what_is_not_declared_is_really_out_of_reach(
    check: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check is no empty one: a package outside the declared ones can not be imported under it."""
    isolation = check("isolation")
    refusing = isolation.Refusing({"torch", "numpy"})
    monkeypatch.setattr(sys, "meta_path", [refusing, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    with pytest.raises(ModuleNotFoundError, match="sklearn is not among what lt-core declares"):
        import sklearn  # noqa: F401
    assert refusing.refused == {"sklearn"}
