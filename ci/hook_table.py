"""Check that docs/hooks.md is the table that the code prints; `--write` writes it anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "hooks.md"


def printed() -> str:
    """Return the page as the code prints it."""
    done = subprocess.run([sys.executable, "-m", "lt_core.hooks"], capture_output=True, text=True, check=True)
    return done.stdout


def main() -> int:
    if "--write" in sys.argv:
        PAGE.write_text(printed(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8").rstrip() != printed().rstrip():
        print("docs/hooks.md is not what the code prints. Run: python ci/hook_table.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
