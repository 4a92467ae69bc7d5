"""Print the closing line of every session's pytest and their sum; fail if no test ran or one failed."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree


def count(report: Path) -> dict[str, float]:
    """Return the counts of one JUnit report."""
    totals = {"tests": 0.0, "failures": 0.0, "errors": 0.0, "skipped": 0.0, "time": 0.0}
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        for key in totals:
            totals[key] += float(suite.get(key, 0))
    return totals


def describe(passed: float, failed: float, skipped: float) -> str:
    """Return ``N passed, N failed``, with the skipped ones if there are any."""
    return f"{passed:.0f} passed, {failed:.0f} failed" + (f", {skipped:.0f} skipped" if skipped else "")


def main(folder: str) -> int:
    reports = sorted(Path(folder).glob("*.xml"))
    if not reports:
        print("No session with tests ran.")
        return 0
    sums = {"passed": 0.0, "failed": 0.0, "skipped": 0.0}
    for report in reports:
        found = count(report)
        failed = found["failures"] + found["errors"]
        passed = max(found["tests"] - failed - found["skipped"], 0)
        print(f"{report.stem:>24}  {describe(passed, failed, found['skipped'])} in {found['time']:.1f}s")
        for key, value in (("passed", passed), ("failed", failed), ("skipped", found["skipped"])):
            sums[key] += value
    print(f"tests: {describe(**sums)}")
    return int(sums["failed"] > 0 or sums["passed"] == 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
