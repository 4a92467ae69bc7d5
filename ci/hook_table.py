"""Check that docs/hooks.md holds the table that the code prints; `--write` writes it anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "hooks.md"
INTRODUCTION = """\
# Hooks

Every hook, in the order in which a run reaches them, as `python -m lt_core.hooks` prints them from the table by which
the loop itself goes. Callbacks get `trainer, pl_module` before these arguments. The last column tells where `self.log`
sends a value by default, and where it is forbidden. A hook that nobody overrides costs nothing; one whose signature can
not take the call is refused before anything starts, and shorter, older forms are called as they are.

"""


def expected() -> str:
    """Return the page as it should be: the introduction and what the code prints."""
    command = [sys.executable, "-W", "ignore", "-m", "lt_core.hooks"]
    return INTRODUCTION + subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> int:
    if "--write" in sys.argv:
        PAGE.write_text(expected(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8").rstrip() != expected().rstrip():
        print("docs/hooks.md is not what the code prints. Run: python ci/hook_table.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
