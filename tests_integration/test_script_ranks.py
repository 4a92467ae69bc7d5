"""Let one of two ranks that run a script again want or meet something: both come to the same, and nobody hangs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SECONDS = 200.0


def run(folder: Path, *names: str) -> tuple[int, list[dict[str, Any]]]:
    """Run cases of the program; return its exit code, and what each rank wrote."""
    command = [sys.executable, str(Path(__file__).with_name("apart_job.py")), str(folder), *names]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert all((folder / f"{rank}.json").exists() for rank in (0, 1)), ended.stderr
    return ended.returncode, [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def test_what_one_rank_of_a_script_wants_is_done_by_both(tmp_path: Path) -> None:
    """A stop, a skipped batch, a save, a monitor, other lengths of data, and what is refused: alike on both ranks."""
    code, (first, second) = run(tmp_path, "stop", "None", "save", "monitor", "evaluation", "stream", "uneven")
    assert code == 0
    assert first == second
    refused = first.pop("uneven")
    assert first == {"stop": 4, "None": 10, "save": 10, "monitor": 15, "evaluation": 0, "stream": 6}
    assert "every rank must have equally many batches. Got 5 on rank 0, 2 on rank 1." in refused


@pytest.mark.slow
def test_an_error_of_one_rank_of_a_script_ends_both(tmp_path: Path) -> None:
    """The rank that fails has its own error, and the other one that names it."""
    _, (first, second) = run(tmp_path, "exception")
    assert first["exception"].startswith("RankFailedError: rank 1, fit, step 2, in on_train_batch_start")
    assert second["exception"] == "ValueError: broken here"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_to_one_rank_of_a_script_ends_both(name: str, code: int, tmp_path: Path) -> None:
    """Both end after the same step, and the exit code is the signal's."""
    found, (first, second) = run(tmp_path, name)
    assert abs(found) in (code, code - 128)
    assert first == second == {name: 4}
