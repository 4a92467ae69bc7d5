"""Print the CPU time and the wall time that the checks took, beside what they may take."""

from __future__ import annotations

import re
import sys
from pathlib import Path

CPU_MINUTES, WALL_MINUTES = 15, 25  # on an idle machine of two cores


def cpu_minutes(times: str) -> float:
    """Return the minutes of a shell's children, user and system, as its `times` prints them in the second line."""
    parts = re.findall(r"(\d+)m([\d.,]+)s", times.splitlines()[-1])
    return sum(int(minutes) + float(seconds.replace(",", ".")) / 60 for minutes, seconds in parts)


if __name__ == "__main__":
    cpu, wall = cpu_minutes(Path(sys.argv[1]).read_text(encoding="utf-8")), int(sys.argv[2]) / 60
    print(f"{cpu:.1f} min of CPU time ({CPU_MINUTES} at most), {wall:.1f} min of wall time ({WALL_MINUTES} at most)")
