"""Keep every due metric in one append-only file; loggers and the history read from it.

A record is one line: a JSON list, a tab, and the CRC32 of the list. One write a record and
no fsync: a killed process loses nothing, and a line torn by a crash of the machine is
recognised and dropped. A disk that takes no more stops no training: what it refused waits in
memory and is written with the next record.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_core.notices import warn
from lt_interface.errors import LTError, Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["History", "Journal", "Record"]

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_MOST_WAITING_BYTES = 1 << 24


@dataclass(frozen=True)
class Record:
    """Hold what was due at one moment.

    Attributes:
        sequence: The record's number, from 0, without a gap.
        stage: ``"train"``, ``"validate"`` or ``"test"``.
        axis: What ``step`` counts.
        step: The x-axis value.
        time: Wall time in seconds since 1970.
        values: Numbers by name.
        end: Byte offset behind the record in its file.
    """

    sequence: int
    stage: str
    axis: str
    step: int
    time: float
    values: dict[str, float]
    end: int


class Journal:
    """Append records to a file and read them back.

    Args:
        path: The file; one that exists is gone on with, without its torn last line. None means
            a nameless file that goes away with the process.

    Attributes:
        former: The identity from before a cut to the very beginning: the same run begins again.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        if self.path is None:
            self._fd, name = tempfile.mkstemp(prefix="lt-journal-")
            os.unlink(name)
        else:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        self._close = weakref.finalize(self, os.close, self._fd)
        self.sequence = self._offset = read = 0
        for record in self.read():
            self.sequence, self._offset, read = record.sequence + 1, record.end, read + 1
        if os.fstat(self._fd).st_size > self._offset:
            os.ftruncate(self._fd, self._offset)
        if read < self.sequence:
            warn(f"Journal({str(self.path)!r}): {self.sequence - read} of {self.sequence} records can not be read.")
        self._waiting = b""
        self._readers: list[weakref.ref[Any]] = []
        self.former: int | None = None

    @property
    def offset(self) -> int:
        """Return the byte offset behind the last record."""
        return self._offset

    def append(self, stage: str, axis: str, step: int, values: Mapping[str, float], wall: float | None = None) -> None:
        """Add a record.

        Args:
            stage: The stage it was logged in.
            axis: What ``step`` counts.
            step: The x-axis value.
            values: Finite or not, each comes back bit for bit.
            wall: Wall time in seconds since 1970; now if None.
        """
        text = _encode([self.sequence, stage, axis, step, time.time() if wall is None else wall, dict(values)]).encode()
        line = b"%b\t%08x\n" % (text, zlib.crc32(text))
        self.sequence += 1
        data = self._waiting + line if self._waiting else line
        try:
            written = os.write(self._fd, data)
            while written < len(data):  # a nearly full disk takes a part
                written += os.write(self._fd, data[written:])
        except OSError as error:
            self._refused(data, error)
        else:
            self._waiting = b""
            self._offset += len(data)

    def _refused(self, data: bytes, error: OSError) -> None:
        """Take back the part that was written, and keep all of it for the next time."""
        first = not self._waiting
        while len(data) > _MOST_WAITING_BYTES:
            data = data[data.index(b"\n") + 1 :]
        self._waiting = data
        with suppress(OSError):
            os.ftruncate(self._fd, self._offset)
            os.lseek(self._fd, 0, os.SEEK_END)
        if first:
            warn(
                f"Journal({str(self.path)!r}): metrics can not be written: {error}. "
                "Training goes on, and they wait in memory. Make room on the disk."
            )

    def cut(self, offset: int, sequence: int) -> None:
        """Forget what lies after a point, as a resumed run does.

        Args:
            offset: Where the journal ended at that point.
            sequence: How many records it held.

        Raises:
            ValueError: If the journal is shorter, or has no record that ends there.
        """
        if offset > self._offset or (offset and os.pread(self._fd, 1, offset - 1) != b"\n"):
            problem = Problem("Journal.cut", "offset must be the end of a record", f"{offset} of {self._offset} bytes")
            raise ValueError(str(problem))
        self._waiting = b""
        if not offset:
            self.former = self.identity()
        os.ftruncate(self._fd, offset)
        os.lseek(self._fd, 0, os.SEEK_END)
        self._offset, self.sequence = offset, sequence

    def read(self, start: int = 0) -> Iterator[Record]:
        """Yield the records from a byte offset on; passes over a damaged one and ends before a torn line."""
        yield from _records(_lines_of(self, start), start)

    def number(self, reader: object) -> int:
        """Return the number of one of those who read the journal: 0 for the first that asked, and so on."""
        for number, known in enumerate(self._readers):
            if known() is reader:
                return number
        self._readers.append(weakref.ref(reader))
        return len(self._readers) - 1

    def identity(self) -> int:
        """Return what tells this journal from others, wherever its file is moved: the CRC32 of its first record."""
        return zlib.crc32(next(_lines_of(self), b""))

    def contents(self) -> bytes:
        """Return all records as the file holds them."""
        return os.pread(self._fd, self._offset, 0)

    def fill(self, contents: bytes) -> None:
        """Begin with what another journal's `contents` returned; for one that is empty."""
        for record in _records(iter(contents.split(b"\n")[:-1]), 0):
            self.append(record.stage, record.axis, record.step, record.values, record.time)

    def flush(self) -> None:
        """Bring what was appended to the disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        self._close()


def _lines_of(journal: Journal, start: int = 0) -> Iterator[bytes]:
    """Yield whole lines; ``pread`` leaves the writer's place in the file alone."""
    fd = os.dup(journal._fd) if journal.path is None else os.open(journal.path, os.O_RDONLY)
    try:
        rest, place = b"", start
        while chunk := os.pread(fd, 1 << 16, place):
            place += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
    finally:
        os.close(fd)


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


class History(dict[str, list[float]]):
    """Hold each metric's values in the order they were logged.

    Attributes:
        steps: The x-axis value of each of them, by the same names.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[str, list[int]] = {}

    @classmethod
    def read(cls, journal: Journal) -> History:
        """Return the history that a journal holds."""
        history = cls()
        for record in journal.read():
            for name, value in record.values.items():
                history.setdefault(name, []).append(value)
                history.steps.setdefault(name, []).append(record.step)
        return history

    def plot(self, path: str | os.PathLike[str] | None = None, keys: Iterable[str] | None = None) -> Figure:
        """Draw one panel for each group of metrics: ``loss`` and ``val_loss`` share one.

        Args:
            path: Where to save the picture, or None.
            keys: The metrics to draw; all but the epoch if None.

        Raises:
            LTError: If matplotlib is missing; names the command that installs it.
            KeyError: If a name was never logged.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            fix = "Run: pip install 'lt-core[plot]'"
            raise LTError(str(Problem("History.plot", "this needs matplotlib", fix=fix))) from None
        groups: dict[str, list[str]] = {}
        for key in [k for k in self if k != "epoch"] if keys is None else keys:
            if key not in self:
                raise KeyError(f"{key!r} was never logged. Logged: {', '.join(self)}")
            stem = key.removesuffix("_step").removesuffix("_epoch")
            groups.setdefault(stem.removeprefix("train_").removeprefix("val_").removeprefix("test_"), []).append(key)
        figure = Figure(figsize=(7, 3 * max(len(groups), 1)), layout="constrained")
        for axes, (stem, members) in zip(
            figure.subplots(max(len(groups), 1), squeeze=False)[:, 0], groups.items(), strict=False
        ):
            for key in members:
                axes.plot(
                    self.steps[key], self[key], label=key, marker="o" if len(self[key]) < 40 else None, markersize=3
                )
            axes.set(xlabel="step", ylabel=stem)
            axes.grid(alpha=0.3)
            axes.legend()
        if path is not None:
            figure.savefig(os.fspath(path), dpi=120)
        return figure
