"""Measure how long after a fault of one of 2 ranks every process of a script is gone, loader workers included.

Each launcher, each rank, killed by SIGKILL or raising, in each place. The time runs from the fault to the moment when
no process of the script is left.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests_integration"))
from launched_job import left, start  # type: ignore[import-not-found]

ALLOWED = 6.0
STRATEGIES, FAULTS = ("ddp", "ddp_fork", "ddp_spawn"), ("raise", "kill")
PLACES = ("setup", "step", "validation", "save")


def seconds(strategy: str, fault: str) -> float:
    """Return how long one fault takes.

    Args:
        strategy: Name of the strategy.
        fault: What happens, on which rank, and where: ``"kill-1-step"``.

    Raises:
        RuntimeError: If the script ended with exit code 0, or had no such fault.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, at = Path(name), Path(name, "fault_at")
        process = start(folder, strategy, "2", "1", FAULT=fault, FAULT_AT=str(at))
        while not at.exists() and process.poll() is None:
            time.sleep(0.01)
        while left(folder):
            time.sleep(0.01)
        ended = time.time()
        _, err = process.communicate()
        if process.returncode == 0 or not at.exists():
            raise RuntimeError(f"{strategy}, {fault}: it must fail. Got exit code {process.returncode}. {err[-2000:]}")
        return ended - float(at.read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=5, help="of each case")
    parser.add_argument("--only", default="", help="cases whose name contains this, such as 'ddp_fork kill-1'")
    parser.add_argument("--check", action="store_true", help="fail if a median is over its figure")
    given = parser.parse_args()
    worst = 0.0
    print(f"Seconds from a fault to the last process's end, median of {given.tries} (longest); allowed {ALLOWED:.0f}:")
    for strategy, fault, rank in product(STRATEGIES, FAULTS, (0, 1)):
        line = []
        for place in PLACES:
            case = f"{fault}-{rank}-{place}"
            if given.only in f"{strategy} {case}":
                took = [seconds(strategy, case) for _ in range(given.tries)]
                worst = max(worst, median(took))
                line.append(f"{place} {median(took):.1f} ({max(took):.1f})")
        if line:
            print(f"{strategy:<10} {fault} on rank {rank}: {', '.join(line)}", flush=True)
    return int(worst > ALLOWED and given.check)


if __name__ == "__main__":
    sys.exit(main())
