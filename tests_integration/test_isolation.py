"""Train where nothing can be imported but what lt-core declares."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType


def test_core_trains_with_only_what_it_declares(root: Path) -> None:
    """lt-core trains, saves and resumes although every other installed package is out of reach."""
    command = [sys.executable, str(root / "ci" / "isolation.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lt-core trained" in done.stdout


def test_what_is_not_declared_is_really_out_of_reach(check: Callable[[str], ModuleType]) -> None:
    """The check is no empty one: installed packages outside the declared ones cannot be imported under it."""
    isolation = check("isolation")
    declared = isolation.needed("lt-core")
    assert isolation.run("import torch, lt_core, safetensors", declared).returncode == 0
    for absent in ("sklearn", "pytest", "lt_accel", "lt_loggers"):
        found = isolation.run(f"import {absent}", declared)
        assert found.returncode == 1
        assert "ModuleNotFoundError" in found.stderr
