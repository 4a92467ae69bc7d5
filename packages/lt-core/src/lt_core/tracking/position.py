"""Keep beside the journal how far each logger came, as parts of the file: offsets (start, end), sorted and apart."""

from __future__ import annotations

import json
import os
import zlib
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lt_core.tracking.journal import Journal

__all__ = ["Acknowledgement", "Parts", "holds", "place_in", "rest", "union", "up_to", "without"]

Parts = tuple[tuple[int, int], ...]
_WIDTH = 120


def union(*parts: Iterable[tuple[int, int]]) -> Parts:
    """Return what lies in any of some parts."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(part for each in parts for part in each if part[0] < part[1]):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return tuple(found)


def up_to(parts: Iterable[tuple[int, int]], end: int) -> Parts:
    """Return what lies before an offset."""
    return tuple((start, min(stop, end)) for start, stop in parts if start < end)


def without(parts: Iterable[tuple[int, int]], others: Iterable[tuple[int, int]]) -> Parts:
    """Return what lies in the one but not in the other."""
    left = list(union(parts))
    for start, end in others:
        left = [piece for a, b in left for piece in ((a, min(b, start)), (max(a, end), b)) if piece[0] < piece[1]]
    return tuple(left)


def holds(parts: Parts, end: int) -> bool:
    """Return whether the record that ends there lies in some part."""
    return any(start < end <= stop for start, stop in parts)


def place_in(chain: Parts, parts: Parts) -> int:
    """Return up to where a chain lies in some parts."""
    missing = without(chain, parts)
    return missing[0][0] if missing else chain[-1][1] if chain else 0


class Acknowledgement:
    """Parts of a journal that a logger has, kept in ``<journal>.<n>.ack``.

    One line of a fixed width, written in place with one call: a kill leaves the old one or the new
    one, and a full disk takes it, since it needs no more room than before.

    Args:
        journal: The journal that is acknowledged.
        number: The logger's number among those that read it.

    Attributes:
        has: The parts that the logger has.
        gone: The parts that were abandoned, and that the logger has forgotten.
        runs: Where the runs begin whose records are meant for the logger.
        found: Whether a sender of this place began before: the logger may have more than ``has`` says.
    """

    def __init__(self, journal: Journal, number: int) -> None:
        self._journal = journal
        self._path = None if journal.path is None else f"{journal.path}.{number}.ack"
        self._fd: int | None = None
        self._kept, self._width = b"", _WIDTH
        self.has: Parts = ()
        self.gone = journal.abandoned
        self.runs: tuple[int, ...] = (journal.first,)
        self.found = False
        with suppress(OSError, ValueError, KeyError, TypeError):
            text, _, crc = Path(str(self._path)).read_text(encoding="utf-8").strip().rpartition(" ")
            self.found = True
            kept = json.loads(text)
            # Written when the journal was empty, it says nothing about records, but whose they will be.
            if kept["journal"] in (0, journal.identity()) and int(crc, 16) == zlib.crc32(text.rstrip().encode()):
                self.has, self.gone = self._parts(kept), _parts(kept.get("gone", ()))
                self.runs = tuple(int(first) for first in kept.get("runs", [0]))

    def _parts(self, kept: dict[str, Any]) -> Parts:
        """Return the parts that are kept; what the file lost in a crash of the machine is in none."""
        size = self._journal.size
        if "has" in kept:
            return up_to(_parts(kept["has"]), size)
        # As before segments: how many records.
        count = int(kept["sequence"])
        had = takewhile(lambda record: record.sequence < count, self._journal.read(parts=((0, size),)))
        return union([(0, max((record.end for record in had), default=0))])

    def keep(self, has: Parts, gone: Parts) -> None:
        """Write down which parts the logger has, and has forgotten; at worst it is asked again after a crash."""
        if self._path is None:
            return
        runs = sorted({*self.runs, self._journal.first})
        text = json.dumps({"has": has, "gone": gone, "runs": runs, "journal": self._journal.identity()})
        line = f"{text} {zlib.crc32(text.encode()):08x}".encode()
        with suppress(OSError):
            if self._fd is None:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
                self._width = max(_WIDTH, os.fstat(self._fd).st_size)
            self._width = max(self._width, len(line) + 1)
            line = line.ljust(self._width - 1) + b"\n"
            if line != self._kept:
                os.pwrite(self._fd, line, 0)
                self._kept = line

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _parts(kept: Iterable[Any]) -> Parts:
    return tuple((int(start), int(end)) for start, end in kept)


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
