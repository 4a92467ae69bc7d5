"""Read back what W&B's own process wrote to its transaction logs (``.wandb`` files)."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Sequence
from glob import escape, glob
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["MARK", "Mark", "TransactionLog", "logs_of", "mark_of", "server_marks", "uploaded", "wait_for_writers"]

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
    """Return what tells a row from others; of a direct call, whose time W&B sets itself, the negative number."""
    return float(time if number >= 0 else number)


class TransactionLog:
    """Follow one transaction log: each `refresh` reads what was added since the last.

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
    files of others can not be seen, one that changed of late is waited for until it stays as it is.
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
