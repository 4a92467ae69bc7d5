"""Check that docs/hooks.md holds the table that the code prints; `--write` writes it anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "hooks.md"
INTRODUCTION = """\
# Hooks

Every hook, in the order in which a run reaches them, as `python -m lt_core.hooks` prints them from the table by which
the loop itself goes. Callbacks get `trainer, pl_module` before these arguments. The last column shows where `self.log`
sends a value by default, and where it is forbidden. A hook that nobody overrides costs nothing; one whose signature
cannot take the call is refused before anything starts, and shorter, older forms are called as they are.

"""


def printed_by(module: str, introduction: str) -> str:
    """Return a page as it should be: its introduction and what a module of ours prints."""
    command = [sys.executable, "-W", "ignore", "-m", module]
    return introduction + subprocess.run(command, capture_output=True, text=True, check=True).stdout


def check_page(page: Path, expected: str) -> int:
    """Write the page with ``--write``, else compare it; return the exit status."""
    if "--write" in sys.argv:
        page.write_text(expected, encoding="utf-8")
    elif page.read_text(encoding="utf-8").rstrip() != expected.rstrip():
        print(f"docs/{page.name} is not what the code prints. Run: python {sys.argv[0]} --write")
        return 1
    return 0


def expected() -> str:
    """Return the page as it should be: the introduction and the table of hooks."""
    return printed_by("lt_core.hooks", INTRODUCTION)


if __name__ == "__main__":
    sys.exit(check_page(PAGE, expected()))
