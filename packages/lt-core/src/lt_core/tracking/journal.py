"""Keep every due metric in one append-only file; loggers and the history read from it.

A record is one line: a JSON list, a tab, and the CRC32 of the list. One write a record and no fsync: a killed process
loses nothing, and a line torn by a crash of the machine is recognised and dropped. A disk that takes no more stops no
training: what it refused waits in memory, where readers see it too, and is written with the next record.

Nothing is ever taken back. A resumed run, or another run in the same folder, opens a **segment**: a line that names its
parent, the offset at which that run goes on, or none for a new run. A run's history is its **chain** of segments, each
up to the offset that its child names; what lies behind that is **abandoned**. Offsets only grow along a chain, so that
a place in the file says what a logger has, whatever was resumed since. A file without such a line is one segment.
"""

from __future__ import annotations

import atexit
import json
import os
import tempfile
import time
import weakref
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lt_core.notices import warn
from lt_core.tracking.position import Parts, up_to, without
from lt_interface import Record as LoggedRecord
from lt_interface.errors import Problem

__all__ = ["NAME", "Journal", "Record"]

NAME = "metrics.journal"  # in a run's folder

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_MOST_WAITING_BYTES = 1 << 26


@dataclass(frozen=True)
class Record(LoggedRecord):
    """Values that were due at one moment: a logger's record, and where it stands.

    Attributes:
        sequence: Its number in the file.
        stage: The stage that logged it.
        axis: What ``step`` counts.
        step: The place on that axis.
        time: Its wall time, in seconds since 1970.
        values: Numbers by name.
        end: Byte offset behind the record in its file.
        epoch: The epoch of a fit that it belongs to; None if no fit logged it.
    """

    end: int
    epoch: int | None


@dataclass
class _Segment:
    """Part of a file that one fit wrote: its run's number, what it goes on from, and its own bytes."""

    run: int
    before: Parts
    start: int
    end: int

    @property
    def chain(self) -> Parts:
        """Return the run's history up to this segment's end."""
        return (*self.before, (self.start, self.end))


class Journal:
    """Append-only file of records.

    Args:
        path: The file; one that exists is continued, without its torn last line. None means
            a nameless file that goes away with the process.
        read_only: Whether nothing is to be changed: another process may be writing.

    Attributes:
        sequence: How many records this run has.
        readers: Those who are fed from it in this process, by their number; a reference may be dead.
        abandoned: The parts of the file that belong to this run, but to its history no more.
        first: Where this run begins in the file.
    """

    def __init__(self, path: str | os.PathLike[str] | None, read_only: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self._read_only = read_only
        if self.path is None:
            self._fd, name = tempfile.mkstemp(prefix="lt-journal-")
            os.unlink(name)
        else:
            flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT | os.O_APPEND
            self._fd = os.open(self.path, flags | getattr(os, "O_BINARY", 0), 0o644)
        self._close = weakref.finalize(self, os.close, self._fd)
        self._full, self._time, self._identity = False, 0.0, 0
        self.readers: dict[int, Callable[[], Any]] = {}
        self._segments = self._found()
        self._go_on(self._segments[-1].run, self._segments[-1].chain)

    def _go_on(self, run: int, chain: Parts) -> None:
        """Make what follows part of a run, behind a chain."""
        # The chain, and the bytes behind it that the disk does not take: one attribute, so that a reader in another
        # thread sees both as they were at one moment.
        self._state: tuple[Parts, bytes] = chain, b""
        mine = [(one.start, one.end) for one in self._segments if one.run == run]
        self.first = mine[0][0] if mine else os.fstat(self._fd).st_size
        self.abandoned = without(mine, chain)
        self.sequence = self._length(chain)
        self._times: dict[str, list[float]] = {}

    def _length(self, chain: Parts) -> int:
        """Return how many records a chain has, by its last one."""
        for start, end in reversed(chain):
            for begin in (max(start, end - (1 << 16)), start):  # its end is nearly always enough
                for line, _ in reversed(list(self._lines(begin, end))):
                    if isinstance(found := _parsed(line), list):
                        return int(found[0]) + 1
        return 0

    def _look_again(self) -> None:
        if os.fstat(self._fd).st_size != self._segments[-1].end:
            self._segments = self._found()

    def _found(self) -> list[_Segment]:
        """Return the segments that the file holds; what follows its last whole line is dropped."""
        size, end, read, unread, doubtful = os.fstat(self._fd).st_size, 0, 0, 0, 0
        segments = [_Segment(0, (), 0, 0)]
        for line, behind in self._lines(0, size):
            if not _is_whole(line):
                doubtful += 1
                continue
            unread, doubtful, read = unread + doubtful, 0, read + 1
            if line.startswith(b"{"):
                segments[-1].end = start = behind - len(line) - 1
                segments.append(_segment(_parsed(line).get("parent"), segments, start))
            segments[-1].end = end = behind
        if size > end and not self._read_only:
            self._keep_damaged(end, size)
            os.ftruncate(self._fd, end)
        if unread:
            warn(f"Journal({str(self.path)!r}): {unread} of {read + unread} records cannot be read.")
        return segments

    def _keep_damaged(self, end: int, size: int) -> None:
        """Keep beside the journal what follows its last record, if that is more than one torn line."""
        rest = os.pread(self._fd, size - end, end)
        if self.path is not None and b"\n" in rest:
            warn(
                f"Journal({str(self.path)!r}): {len(rest)} bytes cannot be read. They are kept in {self.path}.damaged."
            )
            with open(f"{self.path}.damaged", "ab") as file:
                file.write(rest)

    def __reduce__(self) -> tuple[Any, ...]:
        return _read_again, (self.path and os.fspath(self.path.absolute()), b"" if self.path else self.contents())

    def writable(self) -> Journal:
        """Return the journal to append to: one that was read in another process is opened again."""
        return Journal(self.path) if self._read_only else self

    def in_memory(self) -> Journal:
        """Return a copy without a file, for a process that must not write to this one's."""
        return _read_again(None, self.contents())

    # ------------------------------------------------------------ segments

    def begin(self) -> None:
        """Open a segment of a new run; records of others stay where they are."""
        self._look_again()
        if self._segments[-1].end:
            self._go_on(max(one.run for one in self._segments) + 1, ())
            self._append(b"", anew=True)

    def resume(self, offset: int) -> None:
        """Go on from a place in the file: what its run has behind it is abandoned, and stays in the file.

        Args:
            offset: Where the run's history ended at that point.

        Raises:
            ValueError: If the file is shorter, or has no record that ends there.
        """
        self._look_again()
        size = self._segments[-1].end
        if offset > size or (offset and os.pread(self._fd, 1, offset - 1) != b"\n"):
            problem = Problem("Journal.resume", "offset must be the end of a record", f"{offset} of {size} bytes")
            raise ValueError(str(problem))
        found = _segment(offset, self._segments, size)
        self._go_on(found.run, found.before)
        for record in self.read(parts=self.abandoned):
            times = self._times.setdefault(_content(record), [])
            times += [record.time] if record.time not in times else []
        if (self.abandoned or self._segments[-1].run != found.run) and not self._read_only:
            self._append(b"")  # a segment, though nothing may ever be logged in it

    def of_runs(self, firsts: Collection[int]) -> Journal:
        """Return this journal, reading the newest history of several runs, as it is when none goes on.

        Args:
            firsts: Where each of the runs begins.
        """
        newest = {one.run: one.chain for one in self._segments}
        begun = {one.run: one.start for one in reversed(self._segments)}
        chains = [part for run, chain in newest.items() if begun[run] in firsts for part in chain]
        self._state, self.abandoned = (tuple(sorted(chains)), b""), ()
        return self

    @property
    def chain(self) -> Parts:
        """Return the parts of the file that make this run's history; the last one grows."""
        chain, waiting = self._state
        return (*chain[:-1], (chain[-1][0], chain[-1][1] + len(waiting))) if chain else ()

    @property
    def offset(self) -> int:
        """Return the byte offset behind the last record."""
        return self.chain[-1][1] if self._state[0] else 0

    @property
    def size(self) -> int:
        """Return how many bytes the file holds, and what waits for it."""
        return os.fstat(self._fd).st_size + len(self._state[1])

    # ------------------------------------------------------------ writing

    def append(
        self,
        stage: str,
        axis: str,
        step: int,
        values: Mapping[str, float],
        wall: float | None = None,
        epoch: int | None = None,
    ) -> None:
        """Add a record.

        One that a resumed run makes anew, with the same values as before, gets its old wall time: it is the same
        record, and a tracker that has it recognises it.

        Args:
            stage: The stage it was logged in.
            axis: What ``step`` counts.
            step: The x-axis value.
            values: Finite or not, each comes back bit for bit.
            wall: Wall time in seconds since 1970; now if None.
            epoch: The epoch of a fit that they belong to; None if no fit logged them.
        """
        if self._times and (times := self._times.get(_encode([stage, axis, step, dict(values)]))):
            wall = times.pop(0)
        if wall is None:  # no two records have one time, so that a tracker can distinguish them by it
            wall = self._time = max(time.time(), self._time + 1e-6)
        own = [] if epoch is not None and _epoch(values) == epoch else [epoch]  # where the values do not say it
        if self._append(_line([self.sequence, stage, axis, step, wall, dict(values), *own])):
            self.sequence += 1

    def _append(self, line: bytes, anew: bool = False) -> bool:
        """Write a line behind this run's history; where the file goes on with something else, open a segment.

        Returns:
            Whether it was written, or waits; not where memory holds no more.
        """
        chain, waiting = self._state
        size = os.fstat(self._fd).st_size
        data, end = waiting + line, chain[-1][1] if chain else 0
        if anew or size != end:  # another run wrote, or what lies there is abandoned
            if waiting and chain[-1][0] == end:  # what waits opens a segment, which comes later by now
                chain = chain[:-1]
            else:
                data = _line({"parent": None if anew else end}) + data
            chain = (*chain, (size, size))
        try:
            self._write(data, size)
        except OSError as error:
            if waiting and len(data) > _MOST_WAITING_BYTES:
                if not self._full:
                    self._full = True
                    warn(f"Journal({str(self.path)!r}): metrics are lost from here on: memory holds no more. {error}.")
                return False
            self._state = chain, data
            if not waiting:
                atexit.register(_write_waiting, weakref.ref(self))
                warn(
                    f"Journal({str(self.path)!r}): metrics cannot be written: {error}. "
                    "Training goes on, and they wait in memory. Make room on the disk."
                )
        else:
            start = chain[-1][0] if chain else 0
            self._state = (*chain[:-1], (start, size + len(data))), b""
        return True

    def _write(self, data: bytes, size: int) -> None:
        """Add bytes to a file of that size, all or, where that raises, none."""
        try:
            done = os.write(self._fd, data)
            while done < len(data):  # a nearly full disk takes a part
                done += os.write(self._fd, data[done:])
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, size)
                os.lseek(self._fd, 0, os.SEEK_END)
            raise

    def write_waiting(self) -> int:
        """Try once more to write what a full disk refused; return how many records still wait in memory."""
        if self._state[1]:
            self._append(b"")
        return self._state[1].count(b"\n")

    # ------------------------------------------------------------ reading

    def read(self, start: int = 0, parts: Parts | None = None) -> Iterator[Record]:
        """Yield the records of this run from a byte offset on; passes over damaged ones and ends before a torn line.

        Args:
            start: The offset.
            parts: Which parts of the file to read instead.
        """
        for line, end in self._history(start, parts):
            found = _parsed(line)
            if isinstance(found, list):
                sequence, stage, axis, at, wall, values, *epoch = found
                yield Record(sequence, stage, axis, at, wall, values, end, epoch[0] if epoch else _epoch(values))

    def _history(self, start: int = 0, parts: Parts | None = None) -> Iterator[tuple[bytes, int]]:
        chain, waiting = self._state
        for begin, end in chain if parts is None else parts:
            yield from self._lines(max(begin, start), end)
        if parts is None and waiting:
            place = chain[-1][1] if chain else 0
            for line in waiting.split(b"\n")[:-1]:
                place += len(line) + 1
                if place > start:
                    yield line, place

    def _lines(self, start: int, end: int) -> Iterator[tuple[bytes, int]]:
        """Yield whole lines and where each ends; ``pread`` leaves the writer's place in the file alone."""
        fd = os.dup(self._fd)  # not by its path: somebody may have removed the folder
        try:
            rest, place, behind = b"", start, start
            while place < end and (chunk := os.pread(fd, min(1 << 16, end - place), place)):
                place += len(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    behind += len(line) + 1
                    yield line, behind
        finally:
            os.close(fd)

    def identity(self) -> int:
        """Return what only this journal has, wherever its file is moved: the CRC32 of its first record."""
        if not self._identity:
            self._identity = zlib.crc32(next(self._lines(0, 1 << 62), (b"", 0))[0])
        return self._identity

    def contents(self, end: int = 1 << 62) -> bytes:
        """Return the records up to an offset, as the file holds them.

        Args:
            end: The offset in bytes.
        """
        return b"".join(line + b"\n" for line, behind in self._history() if behind <= end and line[:1] == b"[")

    def fill(self, contents: bytes) -> None:
        """Begin with what another journal's `contents` returned.

        Args:
            contents: What it returned.
        """
        for found in map(_parsed, contents.split(b"\n")):
            if isinstance(found, list):
                _, stage, axis, step, wall, values, *epoch = found
                self.append(stage, axis, step, values, wall, epoch[0] if epoch else _epoch(values))

    def flush(self) -> None:
        """Bring what was appended to the disk, as far as that takes it."""
        with suppress(OSError):
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        self._close()


def _segment(parent: int | None, segments: list[_Segment], start: int) -> _Segment:
    """Return a segment that begins at an offset and goes on from another one, or from nothing."""
    if parent is None:
        return _Segment(max(one.run for one in segments) + 1, (), start, start)
    origin = next((one for one in segments if one.start < parent <= one.end), segments[0])
    return _Segment(origin.run, up_to(origin.chain, parent), start, start)


def _read_again(path: str | None, contents: bytes) -> Journal:
    """Return a journal that travelled: its file, or where that is not here, its records."""
    if path is not None and os.path.exists(path):
        return Journal(path, read_only=True)
    journal = Journal(None)
    journal.fill(contents)
    return journal


def _write_waiting(journal: weakref.ref[Journal]) -> None:
    found = journal()
    if found is not None:
        found.write_waiting()


def _epoch(values: Mapping[str, float]) -> int | None:
    """Return the epoch that is among a record's values; one that the user logged is a float."""
    found = values.get("epoch")
    return found if isinstance(found, int) else None


def _content(record: LoggedRecord) -> str:
    return _encode([record.stage, record.axis, record.step, dict(record.values)])


def _line(value: Any) -> bytes:
    text = _encode(value).encode("utf-8", "backslashreplace")  # names of files may hold half a character
    return b"%b\t%08x\n" % (text, zlib.crc32(text))


def _is_whole(line: bytes) -> bool:
    text, _, crc = line.rpartition(b"\t")
    with suppress(ValueError):
        return text[:1] in (b"[", b"{") and int(crc, 16) == zlib.crc32(text)
    return False


def _parsed(line: bytes) -> Any:
    """Return the fields of a record, as a list, or of a segment, as a dict; None for a damaged line."""
    return json.loads(line.rpartition(b"\t")[0]) if _is_whole(line) else None
