"""Run the quickstart as a stranger would."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lt_core.checkpoint import verify


def digits(root: Path, *arguments: str) -> str:
    """Run the program in the current folder and return what it printed."""
    command = [sys.executable, str(root / "examples" / "digits.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def path_after(word: str, printed: str) -> Path:
    """Return the path that stands after a word in what was printed."""
    found = re.search(rf"^ *{word} +(.+)$", printed, re.MULTILINE)
    assert found, printed
    return Path(found.group(1))


def test_quickstart_learns_the_digits_and_leaves_its_traces(root: Path) -> None:
    """The digits are recognised in 97 of 100 cases; picture, metrics and checkpoint lie where the last lines say."""
    begun = time.perf_counter()
    printed = digits(root)
    assert time.perf_counter() - begun < 180
    accuracy = re.search(r"accuracy on the test part: ([\d.]+)%", printed)
    assert accuracy, printed
    assert float(accuracy.group(1)) >= 97

    assert path_after("learning curve", printed).read_bytes().startswith(b"\x89PNG")
    with path_after("metrics", printed).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    epochs = [row for row in rows if row.get("val_accuracy")]
    assert len(epochs) >= 5
    assert float(epochs[-1]["val_accuracy"]) > float(epochs[0]["val_accuracy"]) - 0.05
    verify(path_after("checkpoint", printed))
    assert "bash ci/quickstart --resume" in printed


def test_quickstart_resumes_and_ends_as_if_never_stopped(root: Path) -> None:
    """Two epochs and then two more give the metrics of four in one go."""
    whole = digits_metrics(root, "whole", ["--epochs", "4"])
    parts = digits_metrics(root, "parts", ["--epochs", "2"], ["--epochs", "4", "--resume"])
    assert parts == whole


def digits_metrics(root: Path, folder: str, *runs: list[str]) -> list[str]:
    """Run the program some times in a folder and return the validation losses that the last one left."""
    printed = ""
    for arguments in runs:
        command = [sys.executable, str(root / "examples" / "digits.py"), "--folder", folder, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        # So few epochs may fall short of the 97 %, and then the program says so with its exit code.
        assert done.returncode in (0, 1), done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        printed = done.stdout
    with path_after("metrics", printed).open(encoding="utf-8") as file:
        return [row["val_loss"] for row in csv.DictReader(file) if row.get("val_loss")]


@pytest.mark.parametrize("script", ["ci/quickstart", "ci/test", ".ci/run", "ci/environment.sh"])
def test_scripts_are_whole(root: Path, script: str) -> None:
    """The scripts parse, and those that are run may be run."""
    path = root / script
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert script.endswith(".sh") or path.stat().st_mode & 0o111
