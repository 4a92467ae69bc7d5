"""Know a run again: its mark in each checkpoint, and the record beside them of how it ended.

Every checkpoint carries the mark of its run, in its header: an id, when the run first began and when it was last begun,
with how many steps, and the number of the fit in its process. ``<checkpoint folder>/.runs/<id>.json`` holds the same
with a status. It says *running* from the start on, so that a run that was killed needs nobody to write that down:
running and not locked by a process is killed.

Fits are counted by the place that they save to, and one that raised does not count: what calls fit again in the same
process means the same fit. So the second fold of a program that is started again knows the second fold of before.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lt_core.notices import warn
from lt_core.tracking.lock import JournalLock
from lt_interface.errors import CheckpointError
from lt_interface.jobs import current_jobs
from lt_interface.versions import replace_text

__all__ = ["FINISHED", "FOLDER", "RUNNING", "STOPPED", "RunMark", "RunRecord"]
__all__ += ["count_fit", "is_live", "number_of_fit", "read_records"]

FOLDER = ".runs"
RUNNING, FINISHED, STOPPED = "running", "finished", "stopped"
_ID = re.compile(r"[0-9a-f]{8,32}")
_fits: Counter[str] = Counter()  # by the place they save to: how many have ended without an error in this process


def number_of_fit(place: str) -> int:
    """Return which fit the next one is of those of this process that save to a place, from 1."""
    return _fits[place] + 1


def count_fit(place: str) -> None:
    """Note that a fit that saves to a place has ended without an error."""
    _fits[place] += 1


@dataclass(frozen=True)
class RunMark:
    """What a checkpoint's header says of its run.

    Attributes:
        id: Its name; a run that is resumed keeps it.
        first_start: When it began, in seconds since 1970.
        newest_start: When it was last begun or resumed.
        from_step: How many steps were done at that time.
        ordinal: Which fit of its process that was.
    """

    id: str
    first_start: float
    newest_start: float
    from_step: int = 0
    ordinal: int = 1

    @classmethod
    def read(cls, values: Any) -> RunMark | None:
        """Return the mark that was read from a file, None if it is none: an id becomes a part of file names."""
        try:
            mark = cls(**{name: kind(values[name]) for name, kind in _FIELDS.items()})
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return mark if _ID.fullmatch(mark.id) else None


_FIELDS: dict[str, Any] = {"id": str, "first_start": float, "newest_start": float, "from_step": int, "ordinal": int}


@dataclass
class RunRecord:
    """Run that goes on, and its records in the folders that it saves to.

    Attributes:
        mark: What its checkpoints carry.
    """

    mark: RunMark

    def __post_init__(self) -> None:
        self._folders: list[str] = []
        self._locks: list[JournalLock] = []

    @classmethod
    def begun(cls, ordinal: int, resumed: Any = None, folders: Iterable[str | os.PathLike[str]] = ()) -> RunRecord:
        """Return the record of a run that begins now, which is later than any before, even if the clock was put back.

        Args:
            ordinal: Which fit of its process it is.
            resumed: The mark in the checkpoint that it goes on from, as it was read, if there is one.
            folders: Where records of other runs may lie.
        """
        known = RunMark.read(resumed)
        marks = [mark for mark, _ in read_records(folders).values()]
        marks += [] if known is None else [known]
        now = max([time.time(), *(math.nextafter(mark.newest_start, math.inf) for mark in marks)])
        before = known or RunMark(secrets.token_hex(8), now, now)
        return cls(replace(before, newest_start=now, from_step=0, ordinal=ordinal))

    def state_dict(self) -> dict[str, Any]:
        """Return the mark as plain values, and the jobs in which the run goes on."""
        return {**asdict(self.mark), "jobs": [job.id for job in current_jobs()]}

    def starts_from(self, step: int) -> None:
        """Note how many steps are done, once they are read: a header that was looked at before may be another's now."""
        self.mark = replace(self.mark, from_step=step)

    def keep(self, folders: Iterable[str]) -> None:
        """Lock the run in each folder and record it there as running; a disk that refuses gives a warning.

        Raises:
            CheckpointError: If another process trains this run there.
        """
        for folder in dict.fromkeys(folders):
            path = _path(folder, self.mark.id)
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                lock = JournalLock(path)
                if not lock.acquire(alone=True):
                    rule = "two processes must not train one run"
                    fix = "Wait until that has ended, or begin a new run without ckpt_path."
                    raise CheckpointError(str(lock.refusal(f"checkpoint folder {folder!r}", rule, fix)))
            except OSError as error:
                warn(f"{path}: how this run ends cannot be recorded. {type(error).__name__}: {error}")
                continue
            self._locks.append(lock)
            self._folders.append(folder)
        self._write(RUNNING)

    def end(self, status: str) -> None:
        """Record how the run ended, and free it; nothing where it was not kept, or has ended before."""
        self._write(status)
        self._folders.clear()
        while self._locks:
            self._locks.pop().release()

    def _write(self, status: str) -> None:
        text = json.dumps({**self.state_dict(), "status": status})
        for folder in self._folders:
            try:
                replace_text(_path(folder, self.mark.id), text)
            except OSError as error:
                warn(f"{folder}: that this run is {status} could not be recorded. {type(error).__name__}: {error}")


def _path(folder: str | os.PathLike[str], id: str) -> str:
    return os.path.join(folder, FOLDER, f"{id}.json")


def read_records(folders: Iterable[str | os.PathLike[str]]) -> dict[str, tuple[RunMark, dict[str, Any]]]:
    """Return the newest record of each run in some folders, by id: its mark and all that it holds."""
    found: dict[str, tuple[RunMark, dict[str, Any]]] = {}
    for folder in folders:
        for path in Path(folder, FOLDER).glob("*.json"):
            with suppress(OSError, ValueError):  # one that is being replaced, or not ours
                values = json.loads(path.read_text(encoding="utf-8"))
                mark = RunMark.read(values)
                if mark is not None and (mark.id not in found or found[mark.id][0].newest_start <= mark.newest_start):
                    found[mark.id] = mark, values
    return found


def is_live(folders: Iterable[str | os.PathLike[str]], id: str) -> bool:
    """Return whether a process trains a run right now that saves to any of some folders."""
    for path in (_path(folder, id) for folder in folders):
        lock = JournalLock(path)
        with suppress(OSError):  # no locks can be had there
            if os.path.exists(lock.path):
                if not lock.acquire(alone=True):
                    return True
                lock.release()
    return False
