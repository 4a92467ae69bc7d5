"""Program that trains one case after the other on ranks started in one way, and writes what each rank has come to.

Ranks that run this program again are started once and train all cases; those that are forked or spawned are started
anew for each case, and what is written then is what came back to this process.
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # here, and not in each forked rank: it takes a second
from rank_cases import CASES, MATRIX, train


def found(folder: Path, strategy: str, size: int, names: list[str], seconds: float) -> list[dict[str, Any]]:
    """Return the weights of each case that the program has written, one dictionary a rank.

    Args:
        folder: Where it writes.
        strategy: The trainer's flag.
        size: How many ranks.
        names: The cases; all of them if there are none.
        seconds: When it is killed.
    """
    command = [sys.executable, __file__, strategy, str(size), str(folder), *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    assert ended.returncode == 0, ended.stderr
    ranks = size if strategy == "ddp" else 1
    return [pickle.loads((folder / f"{strategy}-{size}-{rank}").read_bytes()) for rank in range(ranks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("strategy")
    parser.add_argument("size", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = given.names or list(MATRIX if given.strategy == "ddp_spawn" else CASES)
    weights = {name: train(CASES[name], given.size, given.strategy) for name in names}
    own = given.folder / f"{given.strategy}-{given.size}-{os.environ.get('RANK', '0')}"
    own.write_bytes(pickle.dumps(weights))


if __name__ == "__main__":
    main()
