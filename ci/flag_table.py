"""Check that docs/flags.md holds the table that the code prints; `--write` writes it anew."""

from __future__ import annotations

import sys
from pathlib import Path

from hook_table import check_page, printed_by

PAGE = Path(__file__).resolve().parents[1] / "docs" / "flags.md"
INTRODUCTION = """\
# Flags

Every flag of the `Trainer`, as `python -m lt_core.config` prints them from the table by which they are parsed. All are
keyword arguments; `PL_TRAINER_MAX_EPOCHS=3` in the environment sets one that the program does not write. One error
lists every wrong value, unknown name and refused combination before anything starts.

"""


def expected() -> str:
    """Return the page as it should be: the introduction and what the code prints."""
    return printed_by("lt_core.config", INTRODUCTION)


if __name__ == "__main__":
    sys.exit(check_page(PAGE, expected()))
