"""Number the runs of an experiment: ``version_0``, ``version_1`` and so on, one folder each."""

from __future__ import annotations

from pathlib import Path

__all__ = ["claim_version", "last_version"]


def claim_version(root: Path) -> int:
    """Make and return the next free ``version_N`` below ``root``; two processes never get the same.

    Raises:
        OSError: If nothing can be made there.
    """
    root.mkdir(parents=True, exist_ok=True)
    number = last_version(root) + 1
    while True:
        try:
            (root / f"version_{number}").mkdir()
            return number
        except FileExistsError:
            number += 1


def last_version(root: Path) -> int:
    """Return the highest number that was claimed below ``root``; -1 if there is none."""
    return max((int(p.name[8:]) for p in root.glob("version_*") if p.name[8:].isdecimal()), default=-1)
