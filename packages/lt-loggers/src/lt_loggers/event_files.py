"""Read what TensorBoard event files already hold, so that nothing is written twice."""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["runs_below", "shown", "wait_for_a_later_name"]

_NAME = re.compile(r"events\.out\.tfevents\.(\d+)\..*")
_START = 1  # SessionLog.START


def shown(folder: str | os.PathLike[str], event_type: Any) -> tuple[dict[str, int], bool]:
    """Return the last step that is shown of each tag, earlier purges counted, and whether there is a graph.

    Args:
        folder: The folder of one run; its files are read in the order of their names.
        event_type: The ``Event`` class of the package that wrote them.
    """
    last: dict[str, int] = {}
    graph = False
    for path in _files(folder):
        for record in _records(path):
            event = event_type.FromString(record)
            graph |= bool(event.graph_def)
            if event.HasField("session_log") and event.session_log.status == _START:
                last = {tag: min(step, event.step - 1) for tag, step in last.items() if event.step > 0}
            for value in event.summary.value:
                last[value.tag] = max(event.step, last.get(value.tag, event.step))
    return last, graph


def runs_below(folder: str | os.PathLike[str]) -> list[str]:
    """Return the direct subfolders that hold event files, as ``add_scalars`` makes them."""
    if not os.path.isdir(folder):
        return []
    return sorted(entry.path for entry in os.scandir(folder) if entry.is_dir() and _files(entry.path))


def wait_for_a_later_name(folder: str | os.PathLike[str]) -> None:
    """Wait until a new event file sorts after those that are there: their names count whole seconds."""
    newest = max((int(_NAME.fullmatch(p.name).group(1)) for p in _files(folder)), default=0)  # type: ignore[union-attr]
    ahead = newest + 1 - time.time()
    if 0 < ahead <= 1:  # a clock that was set back can not be waited for
        time.sleep(ahead)


def _files(folder: str | os.PathLike[str]) -> list[Path]:
    place = Path(folder)
    return sorted(p for p in place.iterdir() if _NAME.fullmatch(p.name)) if place.is_dir() else []


def _records(path: Path) -> Iterator[bytes]:
    """Yield the whole records of a file; a torn one at its end is what a killed process leaves."""
    with open(path, "rb") as file:
        while True:
            head = file.read(12)
            if len(head) < 12:
                return
            (length,) = struct.unpack("<Q", head[:8])
            body = file.read(length + 4)
            if len(body) < length + 4:
                return
            yield body[:length]
