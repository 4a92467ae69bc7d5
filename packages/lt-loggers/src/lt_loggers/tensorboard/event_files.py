"""Event files of TensorBoard: what they already hold, so that nothing is written twice, and how they are written."""

from __future__ import annotations

import os
import re
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["check_for_room", "event_file_of", "is_there", "media_at", "remove_empty", "runs_below", "scalars", "shown"]
__all__ += ["wait_for_a_later_name", "with_status", "written_at_once"]

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
    for event in _events(folder, event_type):
        graph |= bool(event.graph_def)
        if _starts(event):
            last = {tag: min(step, event.step - 1) for tag, step in last.items() if event.step > 0}
        for value in event.summary.value:
            last[value.tag] = max(event.step, last.get(value.tag, event.step))
    return last, graph


def media_at(folder: str | os.PathLike[str], step: int, event_type: Any) -> list[Any]:
    """Return the events of one step that show anything but scalars.

    Args:
        folder: The folder of one run.
        step: The step.
        event_type: The ``Event`` class of the package that wrote them.
    """
    return [
        event
        for event in _events(folder, event_type)
        if event.step == step and any(value.WhichOneof("value") != "simple_value" for value in event.summary.value)
    ]


def scalars(folder: str | os.PathLike[str], event_type: Any) -> Counter[tuple[str, int, float]]:
    """Return how often each value is in a run's files, by tag, step and wall time; purged ones are not counted.

    Args:
        folder: The folder of one run.
        event_type: The ``Event`` class of the package that wrote them.
    """
    found: Counter[tuple[str, int, float]] = Counter()
    for event in _events(folder, event_type):
        if _starts(event) and event.step > 0:
            for identity in [i for i in found if i[1] >= event.step]:
                del found[identity]
        for value in event.summary.value:
            found[value.tag, event.step, event.wall_time] += 1
    return found


def event_file_of(writer: Any) -> tuple[str, int] | None:
    """Return the path and the inode of the file that a SummaryWriter writes to, where it has them."""
    inner = getattr(getattr(writer, "file_writer", None), "event_writer", None)
    path = getattr(inner, "_file_name", None) or getattr(getattr(inner, "_ev_writer", None), "_file_name", None)
    return (path, os.stat(path).st_ino) if path and os.path.exists(path) else None


class _File:
    """Unbuffered file that is only appended to, an event at a time; threads may share it."""

    def __init__(self, path: str) -> None:
        self._fd: int | None = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        with self._lock:
            if self._fd is None:
                raise OSError("the event file is closed")
            done = os.write(self._fd, data)
            while done < len(data):  # a nearly full disk takes a part
                done += os.write(self._fd, data[done:])

    def flush(self) -> None:
        """Do nothing: all is written."""

    def close(self) -> None:
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    @property
    def closed(self) -> bool:
        return self._fd is None


def written_at_once(writer: Any) -> Any:
    """Return a SummaryWriter that writes each event itself, where its inside is as it is known to be.

    TensorBoard's writer opens the file anew for every event, in a thread that dies of a full disk; tensorboardX's
    ``flush`` does not wait for its queue.
    """
    events: Any = getattr(getattr(writer, "file_writer", None), "event_writer", None)
    path = event_file_of(writer)
    queued, plain = getattr(events, "_async_writer", None), getattr(events, "_ev_writer", None)
    if queued is not None and path and all(hasattr(queued, name) for name in ("_worker", "_writer")):
        queued._worker.stop()  # it writes what the queue has before it ends
        queued._writer._writer = _File(path[0])
        events.add_event = lambda event: queued._writer.write(event.SerializeToString())
    elif plain is not None and getattr(events, "_worker", None) is not None:
        events._worker.stop()
        events.add_event = plain.write_event
    return writer


def is_there(path: str, inode: int) -> bool:
    """Return whether the file of that inode still has its name."""
    try:
        return os.stat(path).st_ino == inode
    except OSError:
        return False


def with_status(summary: Any, status: str) -> Any:
    """Return a summary of hyper-parameters with the status of their session, where it holds one."""
    for value in summary.value:
        if value.tag == "_hparams_/session_end_info":
            data = import_module("tensorboard.plugins.hparams.plugin_data_pb2").HParamsPluginData()
            data.ParseFromString(value.metadata.plugin_data.content)
            data.session_end_info.status = 2 if status == "failed" else 1  # Status: FAILURE, SUCCESS
            value.metadata.plugin_data.content = data.SerializeToString()
    return summary


def runs_below(folder: str | os.PathLike[str]) -> list[str]:
    """Return the direct subfolders that hold event files, as ``add_scalars`` makes them."""
    if not os.path.isdir(folder):
        return []
    return sorted(entry.path for entry in os.scandir(folder) if entry.is_dir() and _files(entry.path))


def wait_for_a_later_name(folder: str | os.PathLike[str]) -> None:
    """Wait until a new event file sorts after those that are there: their names count whole seconds."""
    newest = max((int(_NAME.fullmatch(p.name).group(1)) for p in _files(folder)), default=0)  # type: ignore[union-attr]
    ahead = newest + 1 - time.time()
    if 0 < ahead <= 1:  # a clock that was set back cannot be waited for
        time.sleep(ahead)


def check_for_room(folder: str | os.PathLike[str]) -> None:
    """Raise where nothing can be written: TensorBoard's own thread would die of it, with a traceback each time.

    Raises:
        OSError: Why it cannot be.
    """
    probe = os.path.join(folder, f".probe.{os.getpid()}")
    try:
        with open(probe, "wb", buffering=0) as file:
            file.write(bytes(4096))
    finally:
        with suppress(OSError):
            os.unlink(probe)


def remove_empty(folder: str | os.PathLike[str]) -> None:
    """Remove the empty files that this process leaves where a full disk lets it make files and write nothing."""
    for path in _files(folder):
        with suppress(OSError):
            if f".{os.getpid()}." in path.name and not path.stat().st_size:
                path.unlink()


def _files(folder: str | os.PathLike[str]) -> list[Path]:
    place = Path(folder)
    return sorted(p for p in place.iterdir() if _NAME.fullmatch(p.name)) if place.is_dir() else []


def _events(folder: str | os.PathLike[str], event_type: Any) -> Iterator[Any]:
    for path in _files(folder):
        yield from map(event_type.FromString, _records(path))


def _starts(event: Any) -> bool:
    """Return whether a writer began here; what it purges is from its step on."""
    return bool(event.HasField("session_log") and event.session_log.status == _START)


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
