"""Kill training with SIGKILL at random moments and compare what its restarts end with."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("resume_program.py")


def command(folder: Path, workers: int) -> list[str]:
    return [sys.executable, "-W", "ignore", str(PROGRAM), str(folder), str(workers)]


@lru_cache
def uninterrupted(workers: int) -> Any:
    import tempfile

    folder = Path(tempfile.mkdtemp())
    try:
        subprocess.run(command(folder, workers), check=True, capture_output=True, timeout=300)
        return json.loads((folder / "result.json").read_text())
    finally:
        shutil.rmtree(folder)


def kill_in_the_middle(folder: Path, workers: int, rng: random.Random, inside_save: bool) -> bool:
    """Start the program and kill it; return whether it was killed before it ended."""
    env = dict(os.environ, STEP_PAUSE="0.004")
    process = subprocess.Popen(
        command(folder, workers), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        watched = folder / "lightning_logs"
        deadline = time.monotonic() + 120
        before = set(watched.rglob("*"))
        while process.poll() is None and time.monotonic() < deadline:
            if set(watched.rglob("*.ckpt")) - before:  # its first save is done: it trains
                break
            time.sleep(0.002)
        if inside_save:
            # A temporary file beside the checkpoints says that a save is being written at this moment.
            wanted = rng.randint(1, 12)
            while process.poll() is None and time.monotonic() < deadline and wanted:
                seen = [p for p in watched.glob("*/checkpoints/*") if not p.name.endswith(".ckpt")]
                if seen:
                    wanted -= 1
        else:
            time.sleep(rng.uniform(0, 0.4))
        killed = process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        killed = False
    _, errors = process.communicate(timeout=60)
    assert killed or process.returncode == 0, errors.decode()
    return killed


def kill_and_compare(folder: Path, workers: int, seed: int, inside_save: bool, kills: int = 1) -> None:
    rng = random.Random(seed)
    killed = sum(kill_in_the_middle(folder, workers, rng, inside_save) for _ in range(kills))
    assert killed, "the program ended before it could be killed"
    done = subprocess.run(command(folder, workers), check=False, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    ours, expected = json.loads((folder / "result.json").read_text()), uninterrupted(workers)
    assert expected["global_step"] == ours["global_step"]
    for part in expected:
        assert ours[part] == expected[part], f"{part} differs after a kill (seed {seed}, inside_save {inside_save})"


@pytest.mark.parametrize(("workers", "seed", "inside_save"), [(0, 1, False), (0, 2, True), (2, 3, False), (2, 4, True)])
def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, workers: int, seed: int, inside_save: bool
) -> None:
    """Weights, optimizer, schedulers, random state, metrics and history are the same after kill -9 and "last"."""
    kill_and_compare(tmp_path, workers, seed, inside_save)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_forty_kills_end_with_the_same_bits(tmp_path: Path, seed: int) -> None:
    """The same holds for forty random moments, half of them inside a save, one to three kills each."""
    kill_and_compare(tmp_path, 2 * (seed % 2), 100 + seed, inside_save=seed % 4 < 2, kills=1 + seed % 3)
