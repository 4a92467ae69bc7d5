"""Print how far the weights of several ranks are from those of one process, for each way to start ranks.

Each figure is the largest difference of a weight or buffer on any rank after 20 steps in single precision. The column
"rounding" is one process beside itself with the samples of each batch in the reverse order: what sums in another order
come to, without any rank.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests_integration"))
from parity_job import found  # type: ignore[import-not-found]
from rank_cases import ALLOWED, MATRIX, alone, off, rounded  # type: ignore[import-not-found]

COLUMNS = {
    "`ddp`, 2": ("ddp", 2),
    "`ddp`, 4": ("ddp", 4),
    "`ddp_spawn`, 2": ("ddp_spawn", 2),
    "`ddp_fork`, 2": ("ddp_fork", 2),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0, help="when a column's program is ended")
    parser.add_argument("--check", action="store_true", help="fail if a difference is over its figure")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    expected = {name: alone(case) for name, case in MATRIX.items()}
    columns = {"rounding": [{name: rounded(case) for name, case in MATRIX.items()}]}
    with tempfile.TemporaryDirectory() as folder:
        for title, (strategy, size) in COLUMNS.items():
            columns[title] = found(Path(folder), strategy, size, list(MATRIX), given.seconds)
    worst = 0.0
    print(f"| training | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for name in MATRIX:
        row = [max(max(off(rank[name], expected[name]).values()) for rank in ranks) for ranks in columns.values()]
        print(f"| {name} | {' | '.join(f'{by:.0e}' for by in row)} |")
        worst = max(worst, *row[1:])
    print(f"Largest difference from one process: {worst:.1e}; allowed {ALLOWED:.0e}.")
    return int(worst > ALLOWED and given.check)


if __name__ == "__main__":
    sys.exit(main())
