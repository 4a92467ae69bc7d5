"""Run the quickstart as a stranger would."""

from __future__ import annotations

import csv
import os
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


@pytest.mark.slow
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
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    with path_after("metrics", printed).open(encoding="utf-8") as file:
        return [row["val_loss"] for row in csv.DictReader(file) if row.get("val_loss")]


@pytest.mark.parametrize(
    ("epochs", "status", "said"),
    [
        pytest.param("0", 0, "Nothing is trained", marks=pytest.mark.slow),
        ("1", 0, "Trained 1 epochs"),
        pytest.param("-2", 2, "at least 0", marks=pytest.mark.slow),
    ],
)
def test_few_epochs(root: Path, tmp_path: Path, epochs: str, status: int, said: str) -> None:
    """No epoch trains nothing, one is enough for all traces and no failure, and less than none is refused."""
    command = [sys.executable, str(root / "examples" / "digits.py"), "--folder", str(tmp_path), f"--epochs={epochs}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert said in done.stdout + done.stderr
    assert any(tmp_path.rglob("*.ckpt")) == (epochs == "1")


@pytest.mark.parametrize(
    ("variables", "pip_says", "said"),
    [
        ({}, "NewConnectionError: Connection refused", "There is no network, or the package index"),
        (
            {"PIP_NO_INDEX": "1"},
            "ERROR: No matching distribution found for torch",
            "PIP_NO_INDEX is set, so no package",
        ),
        (
            {"PIP_NO_INDEX": "true", "PIP_FIND_LINKS": "/wheels"},
            "ERROR: No matching distribution found for torch",
            "and /wheels does not have all, and this still has to be installed:\n    torch numpy",
        ),
        ({"PIP_NO_INDEX": "0"}, "ERROR: No matching distribution found for torch", "pip could not install this"),
        ({}, "ERROR: No matching distribution found for torch", "pip could not install this"),
    ],
)
def test_what_cannot_be_installed_is_said(
    root: Path, tmp_path: Path, variables: dict[str, str], pip_says: str, said: str
) -> None:
    """Without a network, or with the index turned off, what lacks and both ways out are said; else pip's own words."""
    pip = tmp_path / "bin" / "python"
    pip.parent.mkdir()
    pip.write_text(f"#!/bin/sh\necho '{pip_says}'\nexit 1\n")
    pip.chmod(0o755)
    line = f"source {root}/ci/environment.sh; install_into {tmp_path} torch numpy"
    known = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(
        ["bash", "-c", line, "ci/quickstart"], capture_output=True, text=True, check=False, env={**known, **variables}
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert ("PIP_NO_INDEX=1 PIP_FIND_LINKS=/that/folder" in done.stderr) == ("pip could not" not in said)


@pytest.mark.parametrize("script", ["ci/quickstart", "ci/test", ".ci/run", "ci/environment.sh"])
def test_scripts_are_whole(root: Path, script: str) -> None:
    """The scripts parse, and those that are run may be run."""
    path = root / script
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert script.endswith(".sh") or path.stat().st_mode & 0o111
