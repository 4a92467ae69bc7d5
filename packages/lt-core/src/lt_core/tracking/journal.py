"""Keep every due metric in one append-only file; loggers and the history read from it.

A record is one line: a JSON list, a tab, and the CRC32 of the list. One write a record and
no fsync: a killed process loses nothing, and a line torn by a crash of the machine is
recognised and dropped. A disk that takes no more stops no training: what it refused waits in
memory, where readers see it too, and is written with the next record.
"""

from __future__ import annotations

import atexit
import json
import os
import tempfile
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lt_core.notices import warn
from lt_interface import Record as LoggedRecord
from lt_interface.errors import Problem

__all__ = ["NAME", "Journal", "Record"]

NAME = "metrics.journal"  # in a run's folder

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_MOST_WAITING_BYTES = 1 << 26


@dataclass(frozen=True)
class Record(LoggedRecord):
    """Values that were due at one moment.

    Attributes:
        end: Byte offset behind the record in its file.
    """

    end: int


class Journal:
    """Append-only file of records.

    Args:
        path: The file; one that exists is continued, without its torn last line. None means
            a nameless file that goes away with the process.
        read_only: Whether nothing is to be changed: another process may be writing.

    Attributes:
        former: The identity from before a cut to the very beginning: the same run begins again.
        sequence: How many records there are.
        readers: Those who are fed from it in this process, by their number; a reference may be dead.
        changes: Numbers of the records from which on a resumed run made others than before, the oldest change first.
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
        # Bytes in the file, and those behind them that it does not take: one attribute, so that a
        # reader in another thread sees both as they were at one moment.
        self._state = os.fstat(self._fd).st_size, b""
        self.sequence = end = read = 0
        for record in self.read():
            self.sequence, end, read = record.sequence + 1, record.end, read + 1
        if self._state[0] > end and not read_only:
            self._keep_damaged(end)
            os.ftruncate(self._fd, end)
        self._state = end, b""
        if read < self.sequence:
            warn(f"Journal({str(self.path)!r}): {self.sequence - read} of {self.sequence} records cannot be read.")
        self._full = False
        self._time = 0.0
        self.former: int | None = None
        self.readers: dict[int, Callable[[], Any]] = {}
        self._tail = self._kept_tail()
        self._by_content: dict[str, list[float]] | None = None
        self.changes = self._kept_changes()

    def __reduce__(self) -> tuple[Any, ...]:
        return _read_again, (self.path and os.fspath(self.path.absolute()), b"" if self.path else self.contents())

    def writable(self) -> Journal:
        """Return the journal to append to: one that was read in another process is opened again."""
        return Journal(self.path) if self._read_only else self

    def in_memory(self) -> Journal:
        """Return a copy without a file, for a process that must not write to this one's."""
        return _read_again(None, self.contents())

    def _keep_damaged(self, end: int) -> None:
        """Keep beside the journal what follows its last record, if that is more than one torn line."""
        rest = os.pread(self._fd, self._state[0] - end, end)
        if self.path is not None and b"\n" in rest:
            warn(
                f"Journal({str(self.path)!r}): {len(rest)} bytes cannot be read. They are kept in {self.path}.damaged."
            )
            with open(f"{self.path}.damaged", "ab") as file:
                file.write(rest)

    @property
    def offset(self) -> int:
        """Return the byte offset behind the last record."""
        written, waiting = self._state
        return written + len(waiting)

    @property
    def highest(self) -> int:
        """Return how many records there ever were: those that a cut took away count."""
        return max([self.sequence, *(sequence + 1 for sequence in self._tail)])

    def append(self, stage: str, axis: str, step: int, values: Mapping[str, float], wall: float | None = None) -> None:
        """Add a record.

        One that a resumed run makes anew, with the same values as before, gets its old wall time: it is the same
        record, and a tracker that has it recognises it.

        Args:
            stage: The stage it was logged in.
            axis: What ``step`` counts.
            step: The x-axis value.
            values: Finite or not, each comes back bit for bit.
            wall: Wall time in seconds since 1970; now if None.
        """
        if self._tail:
            wall = self._former_time(_encode([stage, axis, step, dict(values)]), wall)
        if wall is None:  # no two records have one time, so that a tracker can distinguish them by it
            wall = self._time = max(time.time(), self._time + 1e-6)
        line = _line(LoggedRecord(self.sequence, stage, axis, step, wall, values))
        written, waiting = self._state
        data = waiting + line if waiting else line
        try:
            self._write(data)
        except OSError as error:
            self._refused(line, error)
        else:
            self._state = written + len(data), b""
            self.sequence += 1

    def _write(self, data: bytes) -> None:
        """Add bytes to the file, all or, where that raises, none."""
        try:
            done = os.write(self._fd, data)
            while done < len(data):  # a nearly full disk takes a part
                done += os.write(self._fd, data[done:])
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, self._state[0])
                os.lseek(self._fd, 0, os.SEEK_END)
            raise

    def write_waiting(self) -> int:
        """Try once more to write what a full disk refused; return how many records still wait in memory."""
        written, waiting = self._state
        if waiting:
            with suppress(OSError):
                self._write(waiting)
                self._state, waiting = (written + len(waiting), b""), b""
        return waiting.count(b"\n")

    def _refused(self, line: bytes, error: OSError) -> None:
        """Keep what was not written for the next time."""
        written, waiting = self._state
        if len(waiting) + len(line) > _MOST_WAITING_BYTES:
            if not self._full:
                self._full = True
                warn(f"Journal({str(self.path)!r}): metrics are lost from here on: memory holds no more. {error}.")
            return
        self._state = written, waiting + line
        self.sequence += 1
        if not waiting:
            atexit.register(_write_waiting, weakref.ref(self))
            warn(
                f"Journal({str(self.path)!r}): metrics cannot be written: {error}. "
                "Training goes on, and they wait in memory. Make room on the disk."
            )

    def cut(self, offset: int, sequence: int) -> None:
        """Forget what lies after a point, as a resumed run does; the wall times are kept for what comes again.

        Args:
            offset: Where the journal ended at that point.
            sequence: How many records it held.

        Raises:
            ValueError: If the journal is shorter, or has no record that ends there.
        """
        if offset > self.offset or (offset and os.pread(self._fd, 1, offset - 1) != b"\n"):
            problem = Problem("Journal.cut", "offset must be the end of a record", f"{offset} of {self.offset} bytes")
            raise ValueError(str(problem))
        if not offset:
            self.former = self.identity()
        self._keep_tail(offset)
        self._by_content = None
        os.ftruncate(self._fd, offset)
        os.lseek(self._fd, 0, os.SEEK_END)
        self._state, self.sequence = (offset, b""), sequence

    # ------------------------------------------------------------ what a cut took away

    def _keep_tail(self, offset: int) -> None:
        """Put what is about to be cut beside the journal: the resumed run may die before it is there again."""
        tail = {**self._tail, **{record.sequence: record for record in self.read(offset)}}
        self._tail = dict(sorted(tail.items()))
        if self.path is None or not self._tail:
            return
        with suppress(OSError):
            draft = f"{self.path}.tail.tmp"
            with open(draft, "wb") as file:
                file.writelines(map(_line, self._tail.values()))
            os.replace(draft, f"{self.path}.tail")

    def _kept_tail(self) -> dict[int, LoggedRecord]:
        """Return what earlier cuts took away and nobody made again."""
        with suppress(OSError), open(f"{self.path}.tail", "rb") as file:
            records = _records(file.read().split(b"\n"), 0)
            return {record.sequence: record for record in records if record.sequence >= self.sequence}
        return {}

    def _former_time(self, content: str, wall: float | None) -> float | None:
        """Return the wall time that the next record had before the cut, if there was one of this content."""
        old = self._tail.get(self.sequence)
        if self._by_content is None:
            if old is not None and content == _content(old):
                self._drop_from_tail(self.sequence)
                return old.time
            if old is None:
                return wall
            # From here on it is another run: with other logging, or another setup.
            self._note_change()
            self._by_content = {}
            for record in self._tail.values():
                self._by_content.setdefault(_content(record), []).append(record.time)
        times = self._by_content.get(content)
        return times.pop(0) if times else wall

    def _drop_from_tail(self, sequence: int) -> None:
        del self._tail[sequence]
        if not self._tail and self.path is not None:
            with suppress(OSError):
                os.unlink(f"{self.path}.tail")

    def _note_change(self) -> None:
        """Keep from where on records are others than those that loggers may have under the same numbers."""
        self.changes.append(self.sequence)
        if self.path is not None:
            with suppress(OSError), open(f"{self.path}.changes", "a", encoding="utf-8") as file:
                file.write(f"{self.sequence}\n")

    def _kept_changes(self) -> list[int]:
        with suppress(OSError, ValueError), open(f"{self.path}.changes", encoding="utf-8") as file:
            return [int(line) for line in file.read().split()]
        return []

    # ------------------------------------------------------------ reading

    def read(self, start: int = 0) -> Iterator[Record]:
        """Yield the records from a byte offset on; passes over a damaged one and ends before a torn line."""
        yield from _records(self._lines(start), start)

    def _lines(self, start: int = 0) -> Iterator[bytes]:
        """Yield whole lines; ``pread`` leaves the writer's place in the file alone."""
        written, waiting = self._state
        fd = os.dup(self._fd)  # not by its path: somebody may have removed the folder
        try:
            rest, place = b"", start
            while place < written and (chunk := os.pread(fd, min(1 << 16, written - place), place)):
                place += len(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
        finally:
            os.close(fd)
        if place == written:
            yield from waiting.split(b"\n")[:-1]
        elif place > written:  # the reader is already inside what waits
            yield from waiting[place - written :].split(b"\n")[:-1]

    def identity(self) -> int:
        """Return what only this journal has, wherever its file is moved: the CRC32 of its first record."""
        return zlib.crc32(next(self._lines(), b""))

    def contents(self) -> bytes:
        """Return all records as the file holds them."""
        return b"".join(line + b"\n" for line in self._lines())

    def fill(self, contents: bytes) -> None:
        """Begin with what another journal's `contents` returned; for one that is empty."""
        for record in _records(iter(contents.split(b"\n")[:-1]), 0):
            self.append(record.stage, record.axis, record.step, record.values, record.time)

    def flush(self) -> None:
        """Bring what was appended to the disk, as far as that takes it."""
        with suppress(OSError):
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        self._close()


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


def _content(record: LoggedRecord) -> str:
    return _encode([record.stage, record.axis, record.step, dict(record.values)])


def _line(record: LoggedRecord) -> bytes:
    fields = [record.sequence, record.stage, record.axis, record.step, record.time, dict(record.values)]
    text = _encode(fields).encode("utf-8", "backslashreplace")  # names of files may hold half a character
    return b"%b\t%08x\n" % (text, zlib.crc32(text))


def _records(lines: Iterable[bytes], start: int) -> Iterator[Record]:
    end = start
    for line in lines:
        end += len(line) + 1
        text, _, crc = line.rpartition(b"\t")
        try:
            if int(crc, 16) != zlib.crc32(text):
                continue
            sequence, stage, axis, step, wall, values = json.loads(text)
        except (ValueError, TypeError):
            continue
        yield Record(sequence, stage, axis, step, wall, values, end)
