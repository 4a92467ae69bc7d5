"""Kill a run at random moments, start it again, and compare it to the bit with one that nobody killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import pytest

JOB = Path(__file__).with_name("killed_job.py")
# A run saves some sixteen times, each with a few calls that bring files to the disk; it takes about half a second.
LAST_CALL, SECONDS = 60, 0.5


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the job in a folder, to its end or its death; it goes on where its last checkpoint lies, if there is one."""
    there = sorted(folder.glob("lightning_logs/*"))
    may_begin_anew = not list(folder.rglob("*.ckpt"))
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    command = [sys.executable, str(JOB), *arguments]
    # Into files: a worker whose parent died while it was forked may hold a pipe open for ever.
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=err, start_new_session=True)
        code = process.wait(timeout=300)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out.seek(0)
        err.seek(0)
        done = subprocess.CompletedProcess(command, code, out.read(), err.read())
    assert may_begin_anew or sorted(folder.glob("lightning_logs/*")) == there, done.stderr
    return done


def result(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return what a run that came to its end printed."""
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@lru_cache
def uninterrupted(workers: int) -> dict[str, Any]:
    """Return what the job comes to when nobody kills it."""
    with TemporaryDirectory() as folder:
        return result(start(Path(folder), "--workers", str(workers)))


def kill_and_resume(folder: Path, workers: int, kills: int, seed: int) -> tuple[dict[str, Any], int]:
    """Start the job until it has died ``kills`` times, let it end, and return what it came to and how often it died."""
    chance = random.Random(seed)
    died = 0
    for number in range(kills):
        # Every other death is inside a save: more than the third that is promised.
        if number % 2:
            how = ["--die-inside-save", str(chance.randint(1, LAST_CALL))]
        else:
            how = ["--die-after", f"{chance.uniform(0.0, SECONDS):.3f}"]
        done = start(folder, "--workers", str(workers), *how)
        if done.returncode == 0:  # it came to its end first; nothing is left to kill
            return result(done), died
        assert done.returncode == -signal.SIGKILL, done.stderr
        died += 1
    return result(start(folder, "--workers", str(workers))), died


def check_chains(folder: Path, workers: int, kills: int, seed: int) -> None:
    """Kill until that many runs have died, in as many chains of runs as it takes, and compare what each comes to."""
    attempt = 0
    while kills:
        place = folder / str(attempt)
        place.mkdir()
        found, died = kill_and_resume(place, workers, kills, seed=seed + 10 * attempt)
        assert found == uninterrupted(workers)
        kills, attempt = kills - died, attempt + 1


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_killed_twice_and_resumed_ends_with_the_same_bits(workers: int, tmp_path: Path) -> None:
    """One kill at a random moment and one inside a save change nothing of what the run comes to."""
    check_chains(tmp_path, workers, kills=2, seed=11 + workers)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("seed", range(5))
def test_forty_kills_change_nothing(workers: int, seed: int, tmp_path: Path) -> None:
    """Forty kills in ten chains of runs, half of them inside a save, change nothing of what the runs come to."""
    check_chains(tmp_path, workers, kills=4, seed=100 * seed + workers)
