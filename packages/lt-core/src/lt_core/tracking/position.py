"""Keep beside the journal how far each logger came."""

from __future__ import annotations

import json
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lt_core.tracking.journal import Journal

__all__ = ["Acknowledgement", "rest"]

_WIDTH = 120


class Acknowledgement:
    """Number of records that a logger has, kept in ``<journal>.<n>.ack``.

    One line of a fixed width, written in place with one call: a kill leaves the old one or the new
    one, and a full disk takes it, since it needs no more room than before.

    Args:
        journal: The journal that is acknowledged.
        number: The logger's number among those that read it.

    Attributes:
        sequence: How many records the logger has; 0 if what is kept is of another journal.
        found: Whether a delivery of this place began before: the logger may have more than ``sequence`` says.
    """

    def __init__(self, journal: Journal, number: int) -> None:
        self._journal = journal
        self._path = None if journal.path is None else f"{journal.path}.{number}.ack"
        self._fd: int | None = None
        self._kept: bytes | None = None
        self.sequence, self.found = self._load()

    def _load(self) -> tuple[int, bool]:
        try:
            text, _, crc = Path(str(self._path)).read_text(encoding="utf-8").strip().rpartition(" ")
        except (OSError, ValueError):
            return 0, False
        with suppress(ValueError, KeyError, TypeError):
            kept = json.loads(text)
            # An empty journal is any run's: its identity says nothing.
            mine = kept["journal"] and kept["journal"] in (self._journal.identity(), self._journal.former)
            if mine and int(crc, 16) == zlib.crc32(text.rstrip().encode()):
                return min([int(kept["sequence"]), *self._journal.changes[int(kept["changes"]) :]]), True
        return 0, True

    def keep(self, sequence: int) -> None:
        """Write down that the logger has this many records; at worst it is asked again after a crash."""
        if self._path is None:
            return
        journal, changes = self._journal.identity(), len(self._journal.changes)
        text = json.dumps({"sequence": sequence, "journal": journal, "changes": changes})
        line = f"{text} {zlib.crc32(text.encode()):08x}".ljust(_WIDTH - 1).encode() + b"\n"
        if line == self._kept:
            return
        with suppress(OSError):
            if self._fd is None:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            os.pwrite(self._fd, line, 0)
            self._kept, self.sequence = line, sequence

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def rest(journal: Journal, left: int, waiting: int, left_out: int, calls: str, replay: str) -> Iterator[str]:
    """Yield what a logger did not take, and how to send it.

    Args:
        journal: What it is fed from.
        left: How many records it lacks.
        waiting: How many records are in memory only, since the disk is full.
        left_out: How many it refused.
        calls: What else was not sent, in words.
        replay: The command that sends records, if there is one.
    """
    if calls:
        yield f"not sent: {calls}"
    if left_out > 1:
        yield f"refused {left_out} records, which are left out"
    if left and waiting:
        yield f"{left} records of metrics were not taken; the disk is full: {waiting} of them end with this process"
    elif left and journal.path is None:
        yield f"{left} records of metrics were not taken; they are lost"
    elif left:
        command = f". Send them with: {replay}" if replay else ""
        yield f"{left} records of metrics were not taken; they stay in {journal.path}{command}"
