"""Flags that the ranks exchange after every batch, and meetings before other exchanges, at a cost that nobody feels.

A reduction over gloo wakes a thread on every rank, which costs 0.1 ms where ranks fill all cores. Ranks of one machine
need none: each writes a word of shared memory that the others read. The word holds the number of the exchange beside
the flags, so that one store publishes both. Two words by turns suffice: whoever sends exchange n + 2 has read n + 1 of
all ranks, and a rank sends n + 1 only after it has read n.

Before any other exchange the ranks meet: each writes what it is about to do, and waits until all have. So exchanges
that do not belong together never begin. Beside that each counts its marks: the flags that it has sent and the backward
passes in which it exchanges gradients. All ranks do these in one order, so who has more marks than a rank that waits
for it, and did not come before, never will.

A rank that dies is noticed by the lock on its byte of the file, which the system lets go of with the process.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from lt_interface import MisconfigurationException, RankFailedError, World

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LateError", "SharedFlags", "shared_flags", "too_late"]

_BITS = 32  # below the number of a meeting; of an exchange of flags the lowest 8 bits of its marks come between
_LINE = 8  # words of a cache line: ranks do not write into one another's
_TEXT = 15 * _LINE  # bytes of what a rank is about to do; two lines with their length
_MEETINGS, _MARKS, _TEXTS, _LINES = 2, 4, 5, 9  # lines of a rank: flags, meetings, marks, texts, and how many
_LEFT = (1 << 64) - 1
_LOOK = 0.1  # seconds between two looks at what became of a rank that is late
_SHORT = 0.001  # seconds in which a rank that waits only offers its core to others


class LateError(TimeoutError):
    """Wait for ranks that did not come in time."""


class SharedFlags:
    """Flags and meetings in shared memory, between the ranks of one machine.

    Args:
        path: A file that all of them can write; it is made longer where needed.
        rank: This rank.
        size: Number of ranks.
        timeout: Seconds that a rank waits for the others.
    """

    def __init__(self, path: str, rank: int, size: int, timeout: float) -> None:
        self._rank, self._ranks, self.timeout = rank, range(size), timeout
        self._file = os.open(path, os.O_RDWR)
        os.ftruncate(self._file, size * _LINES * _LINE * 8)
        self._bytes = memoryview(mmap.mmap(self._file, 0))
        self._words = self._bytes.cast("Q")
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, rank)
        self._count = self._met = self._marks = self._sent = self._head = 0
        self._marks_at = (_LINES * rank + _MARKS) * _LINE

    def mark(self) -> None:
        """Count one more of what all ranks do in the same order."""
        self._marks += 1
        self._words[self._marks_at] = self._marks

    def send(self, bits: int) -> None:
        """Send this rank's bits."""
        self.mark()
        self._count, self._sent = self._count + 1 & 0xFFFFFF, self._marks
        self._head = self._count << 8 | self._marks & 0xFF
        self._words[self._at(self._rank)] = self._head << _BITS | bits

    def receive(self, look: Callable[[], object] = bool) -> int:
        """Wait for what every rank sent, and return the bits that any of them set.

        Args:
            look: Called now and then meanwhile.

        Raises:
            RankFailedError: If a rank died or left.
            LateError: If one does not come in time.
            MisconfigurationException: If a rank went through other exchanges before.
        """
        words, seen = self._words, 0
        for rank in self._ranks:
            word = words[self._at(rank)]
            if word >> _BITS != self._head:
                word = self._await(rank, look)
            seen |= word
        return seen & (1 << _BITS) - 1

    def close(self) -> None:
        """Take part no more; ranks that wait for this one get an error."""
        # The word of the next exchange alone: what was sent in this one may have to be read yet.
        self._words[self._at(self._rank, 1)] = self._words[self._meeting_at(self._rank, 1)] = _LEFT
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def enter(self, what: str) -> None:
        """Come to the next meeting.

        Args:
            what: What this rank is about to do; its beginning is kept.
        """
        text = what.encode(errors="replace")[:_TEXT]
        self._met = self._met + 1 & 0xFFFFFFFF
        at = self._text_at(self._rank)
        self._bytes[at] = len(text)
        self._bytes[at + 8 : at + 8 + len(text)] = text
        self._words[self._meeting_at(self._rank)] = self._met << _BITS | zlib.crc32(text)

    def await_all(self, what: str, limit: float, look: Callable[[], object]) -> list[int]:
        """Wait until every rank has come to the meeting; return ranks that never come, since they are past its place.

        Args:
            what: What this rank is about to do there.
            limit: Seconds until it is an error.
            look: Called now and then meanwhile.

        Raises:
            RankFailedError: If a rank died or left.
            LateError: If one does not come in time.
        """
        return self._wait(self.late, self._marks, what, limit, look)

    def late(self) -> list[int]:
        """Return the ranks that have not come to the meeting.

        Raises:
            RankFailedError: If one of them left.
        """
        return self._absent(self._meeting_at, _BITS, self._met)

    def alike(self) -> bool:
        """Return whether all ranks, which have come to the meeting, are about to do the same."""
        return len({self._words[self._meeting_at(rank)] for rank in self._ranks}) == 1

    def doing(self, rank: int) -> str:
        """Return what a rank that has come to the meeting is about to do."""
        at = self._text_at(rank)
        return bytes(self._bytes[at + 8 : at + 8 + self._bytes[at]]).decode(errors="replace")

    def _at(self, rank: int, ahead: int = 0) -> int:
        return (_LINES * rank + ((self._count + ahead) & 1)) * _LINE

    def _meeting_at(self, rank: int, ahead: int = 0) -> int:
        return (_LINES * rank + _MEETINGS + ((self._met + ahead) & 1)) * _LINE

    def _text_at(self, rank: int) -> int:
        return (_LINES * rank + _TEXTS + 2 * (self._met & 1)) * _LINE * 8

    def _absent(self, at: Callable[[int], int], shift: int, number: int) -> list[int]:
        """Return the ranks whose words, without some low bits, are not a number yet."""
        absent = []
        for rank in self._ranks:
            word = self._words[at(rank)]
            if word == _LEFT:
                raise RankFailedError(f"rank {rank}: it left while rank {self._rank} waited for it.")
            if word >> shift != number:
                absent.append(rank)
        return absent

    def _await(self, rank: int, look: Callable[[], object]) -> int:
        """Return the word of a rank that is late."""

        def late() -> list[int]:
            return self._absent(self._at, _BITS + 8, self._count)

        if ahead := self._wait(late, self._sent - 1, "the flags of a batch", self.timeout, look):
            raise _apart(ahead[0], self._rank)  # in an exchange that this rank left out
        word = self._words[self._at(rank)]
        if word >> _BITS != self._head:
            raise _apart(rank, self._rank)
        return word

    def _wait(
        self, late: Callable[[], list[int]], marks: int, what: str, limit: float, look: Callable[[], object]
    ) -> list[int]:
        """Wait until no rank is late; return those that have more marks, and so are past this place."""
        begun, looked, pause = time.monotonic(), 0.0, 0.0
        while absent := late():
            waited = time.monotonic() - begun
            if waited > looked + _LOOK:
                looked = waited
                look()
                ahead = [rank for rank in absent if self._marks_of(rank) > marks]
                gone = [rank for rank in absent if self._is_gone(rank)]
                still = late()  # one that came in between may be ahead, or gone, by now
                for rank in gone:
                    if rank in still:
                        raise RankFailedError(f"rank {rank}: it ended while rank {self._rank} waited for it.")
                if ahead := [rank for rank in ahead if rank in still]:
                    return ahead
            if waited >= limit:
                raise too_late(what, limit, absent)
            # At first the core is only offered to others: ranks are rarely apart by more than moments.
            time.sleep(pause)
            pause = 0.0 if waited < _SHORT else min(pause + 0.0001, 0.005)
        return []

    def gone(self) -> list[int]:
        """Return the ranks whose processes have ended."""
        return [rank for rank in self._ranks if rank != self._rank and self._is_gone(rank)]

    def _marks_of(self, rank: int) -> int:
        return self._words[(_LINES * rank + _MARKS) * _LINE]

    def _is_gone(self, rank: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        except OSError:
            return False
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, rank)
        return True


def too_late(what: str, timeout: float, missing: Sequence[int]) -> LateError:
    """Return the error for ranks that do not come.

    Args:
        what: What needs them.
        timeout: Seconds in which they had to.
        missing: The ranks.
    """
    return LateError(
        f"{what}: every rank must come within {timeout:g} s. Got no sign of ranks {list(missing)}. "
        "Look for what they did in its place."
    )


def _apart(rank: int, own: int) -> MisconfigurationException:
    return MisconfigurationException(
        f"rank {rank}: it must exchange as often as rank {own} from batch to batch. Got another number of backward "
        "passes or optimizer steps on one of them. Run each of them on every rank; a loss that is to be left out may "
        "be multiplied by zero."
    )


def shared_flags(world: World, group: Any, timeout: float) -> SharedFlags | None:
    """Return flags in shared memory, or None on every rank where one of them is on another machine.

    Args:
        world: The place of this process.
        group: A gloo group of all ranks.
        timeout: Seconds that a rank waits for the others.
    """
    box = [_new_file(world) if world.rank == 0 else None]
    dist.broadcast_object_list(box, 0, group)
    path = box[0]
    if path is None:
        return None
    try:
        shared = SharedFlags(path, world.rank, world.size, timeout)
    except OSError:  # ranks that see different disks
        shared = None
    opened = torch.tensor(int(shared is not None))
    dist.all_reduce(opened, dist.ReduceOp.MIN, group)
    # Every rank has opened the file by now, or knows that one could not.
    if world.rank == 0:
        os.unlink(path)
    return shared if opened else None


def _new_file(world: World) -> str | None:
    if world.local_size != world.size or fcntl is None:
        return None
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    try:
        descriptor, path = tempfile.mkstemp(prefix="lt-flags-", dir=folder)
    except OSError:
        return None
    os.close(descriptor)
    return path
