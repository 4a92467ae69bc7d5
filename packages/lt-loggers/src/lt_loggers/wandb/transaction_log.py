"""Transaction logs (``.wandb`` files) that W&B's own process writes, and the rows of a run that they hold."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Sequence
from glob import escape, glob
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lt_loggers.wandb.run import OpenRun

__all__ = ["MARK", "KnownRows", "Mark", "TransactionLog", "mark_of"]

# Each row carries this hidden key: a record's number, or a negative number for a direct call.
MARK = "_lt/record"
# A record's row is known by its wall time, which no other has and a resumed run keeps; its number may change.
Mark = float

# The format: 7 bytes ":W&B" and a magic number, then LevelDB's log of 32 KiB blocks that hold
# chunks of (crc32, length, kind) and data; a record is one full chunk or first, middle.., last.
_FILE_HEADER = 7
_BLOCK = 32768
_CHUNK = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def mark_of(number: float, time: float) -> Mark:
    """Return what identifies a row; of a direct call, whose time W&B sets itself, the negative number."""
    return float(time if number >= 0 else number)


class TransactionLog:
    """One transaction log; each `refresh` reads what was added since the last.

    A record that is not wholly there yet, or was cut off by a kill, is left for the next time.

    Args:
        path: The file; it may come later.

    Attributes:
        path: The file.
        marks: The marks of the rows that carry one, each with its place in the run's history.
        steps: The places of all rows.
        configs: How many changes of the configuration there are.
        is_ended: Whether the end of the run is there.
        step_metrics: The x-axis that each metric was defined with, by name; names of groups end in ``*``.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.marks: dict[Mark, int] = {}
        self.steps: set[int] = set()
        self.configs = 0
        self.is_ended = False
        self.step_metrics: dict[str, str] = {}
        self._offset = 0

    @property
    def read_to(self) -> int:
        """Return how many bytes of the file were read."""
        return self._offset

    def refresh(self) -> None:
        """Read what was added."""
        entry = import_module("wandb.proto.wandb_internal_pb2").Record
        for data in self._new():
            record = entry()
            try:
                record.ParseFromString(data)
            except Exception:  # protobuf's own error class differs by version; damage is passed over
                continue
            kind = record.WhichOneof("record_type")
            if kind == "history":
                self._note_row(record.history)
            elif kind == "config":
                self.configs += 1
            elif kind == "exit":
                self.is_ended = True
            elif kind == "metric" and record.metric.step_metric:
                self.step_metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric

    def _note_row(self, history: Any) -> None:
        step = int(history.step.num)
        self.steps.add(step)
        found: dict[str, float] = {}
        for item in history.item:
            key = item.key or "/".join(item.nested_key)
            if key in (MARK, "_timestamp"):
                found[key] = float(item.value_json) if item.value_json else item.integer or item.number
        if MARK in found:
            self.marks[mark_of(found[MARK], found.get("_timestamp", 0.0))] = step

    def _new(self) -> Iterator[bytes]:
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        start = self._offset
        position = start or _FILE_HEADER
        parts: list[bytes] = []
        while True:
            left = _BLOCK - position % _BLOCK
            if left < _CHUNK.size:  # too little for a header: filled up with zeros
                position += left
                continue
            head = data[position - start : position - start + _CHUNK.size]
            if len(head) < _CHUNK.size:
                return
            _, length, kind = _CHUNK.unpack(head)
            if not _FULL <= kind <= _LAST or _CHUNK.size + length > left:  # damage: go on with the next block
                parts.clear()
                position += left
                continue
            chunk = data[position - start + _CHUNK.size : position - start + _CHUNK.size + length]
            if len(chunk) < length:
                return
            position += _CHUNK.size + length
            if kind in (_FULL, _FIRST):
                parts.clear()
            parts.append(chunk)
            if kind in (_FULL, _LAST):
                self._offset = position
                yield b"".join(parts)
                parts.clear()


class KnownRows:
    """Rows that are in a run or on their way there, whichever process sent them."""

    def __init__(self) -> None:
        self._logs: dict[str, TransactionLog] = {}  # of earlier processes, and earlier starts of this one
        self._at_server: set[Mark] | None = None

    def marks(self, opened: OpenRun, save_dir: str, is_offline: bool, timeout: float) -> set[Mark]:
        """Return the marks of these rows.

        Offline, that is what all transaction logs of the run hold. Online, what a dead process wrote to its
        log may not have reached the server.

        Args:
            opened: The run.
            save_dir: Where W&B's files lie, in ``wandb``.
            is_offline: Whether the run is kept on this machine.
            timeout: Seconds for the server's answer, and for W&B's own process of a dead one to end.

        Raises:
            ConnectionError: If the server is needed and gives no answer.
        """
        known = set(opened.owed)
        if opened.log is not None:
            opened.log.refresh()
            known.update(opened.log.marks)
        kept = self._earlier(opened, save_dir, True, timeout)
        sent = self._earlier(opened, save_dir, False, timeout)
        for log in [*kept, *sent] if is_offline else kept:
            known.update(log.marks)
        start = int(getattr(opened.run, "starting_step", 0))
        if not is_offline and start > 0:
            known |= uploaded(sent, start)
            if not set().union(*(log.steps for log in sent)).issuperset(range(start)):
                if self._at_server is None:
                    self._at_server = server_marks(opened.run.path, timeout)
                known |= self._at_server
        return known

    def _earlier(self, opened: OpenRun, save_dir: str, offline: bool, timeout: float) -> list[TransactionLog]:
        """Return what earlier processes, and earlier starts of this one, wrote of the run."""
        own = "" if opened.log is None else os.path.realpath(opened.log.path)
        paths = [path for path in logs_of(save_dir, opened.run.id, offline) if os.path.realpath(path) != own]
        wait_for_writers([path for path in paths if path not in self._logs], timeout)
        logs = [self._logs.setdefault(path, TransactionLog(path)) for path in paths]
        for log in logs:
            log.refresh()
        return logs


def logs_of(save_dir: str, run_id: str, offline: bool) -> list[str]:
    """Return the transaction logs of a run, those of offline or of online use, the oldest first."""
    kind = "offline-run" if offline else "run"
    # wandb adds a number where two begin within one second
    return sorted(
        path
        for folder in glob(os.path.join(escape(save_dir), "wandb", f"{kind}-*-{escape(run_id)}*"))
        if os.path.exists(path := os.path.join(folder, f"run-{run_id}.wandb"))
    )


def wait_for_writers(paths: list[str], timeout: float) -> None:
    """Return when no process has one of the files open any more, or after ``timeout`` seconds.

    W&B's own process outlives a killed trainer for a moment and writes out what it has. Where open
    files of others cannot be seen, one that changed of late is waited for until it stays as it is.
    """
    end = time.monotonic() + timeout
    if os.path.isdir("/proc/self/fd"):
        wanted = {os.path.realpath(path) for path in paths}
        while wanted & _opened() and time.monotonic() < end:
            time.sleep(0.02)
        return
    fresh = [path for path in paths if time.time() - os.path.getmtime(path) < 30]
    sizes: list[int] | None = None
    while fresh and time.monotonic() < end:
        before, sizes = sizes, [os.path.getsize(path) for path in fresh]
        if sizes == before:
            return
        time.sleep(1.0)


def _opened() -> set[str]:
    """Return the transaction logs that any process we may look at has open."""
    found: set[str] = set()
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                names = [os.readlink(entry) for entry in (process / "fd").iterdir()]
            except OSError:  # it ended meanwhile, or is another user's
                continue
            found.update(name for name in names if name.endswith(".wandb"))
    return found


def uploaded(logs: Sequence[TransactionLog], start: int) -> set[Mark]:
    """Return the marks of the rows that the server took from dead processes.

    W&B sends rows in order, and a run that goes on begins behind the last one that the server has.

    Args:
        logs: The transaction logs of online use, the oldest first.
        start: The place of the first row of the process that goes on now.
    """
    found: set[Mark] = set()
    for log in reversed(logs):
        found.update(mark for mark, step in log.marks.items() if step < start)
        start = min(start, *log.steps, start)
    return found


def server_marks(path: str, timeout: float) -> set[Mark]:
    """Return the marks of the rows that the server has of a run; for rows that another machine sent.

    Args:
        path: ``entity/project/id``.
        timeout: Seconds for one request.

    Raises:
        ConnectionError: If the server gives no answer.
    """
    import wandb

    try:
        rows = (
            wandb.Api(timeout=max(1, int(timeout))).run(path).scan_history(keys=[MARK, "_timestamp"], page_size=10_000)
        )
        return {mark_of(row[MARK], row["_timestamp"]) for row in rows}
    except Exception as error:
        raise ConnectionError(f"WandbLogger: the rows of run {path} could not be asked for. {error}") from error
