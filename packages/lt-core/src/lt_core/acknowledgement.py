"""Keep beside the journal how far each logger came, and how it is made again in another process."""

from __future__ import annotations

import json
import os
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_interface import registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lt_core.journal import Journal

__all__ = ["Acknowledgement", "Description", "descriptions", "plain_json"]

_WIDTH = 120


class Acknowledgement:
    """Hold in ``<journal>.<n>.ack`` how many records a logger has.

    One line of a fixed width, written in place with one call: a kill leaves the old one or the new
    one, and a full disk takes it, since it needs no more room than before.

    Args:
        journal: The journal that is acknowledged.
        number: The logger's number among those that read it.

    Attributes:
        sequence: How many records the logger has; 0 if what is kept is of another journal.
        found: Whether a delivery of this place began before: the logger may have more than ``sequence`` says.
    """

    def __init__(self, journal: Journal, number: int) -> None:
        self._journal = journal
        self._path = None if journal.path is None else f"{journal.path}.{number}.ack"
        self._fd: int | None = None
        self._kept: bytes | None = None
        self.sequence, self.found = self._load()

    def _load(self) -> tuple[int, bool]:
        try:
            text, _, crc = Path(str(self._path)).read_text(encoding="utf-8").strip().rpartition(" ")
        except (OSError, ValueError):
            return 0, False
        try:
            kept = json.loads(text)
            # An empty journal is any run's: its identity tells nothing.
            mine = kept["journal"] and kept["journal"] in (self._journal.identity(), self._journal.former)
            if mine and int(crc, 16) == zlib.crc32(text.rstrip().encode()):
                return int(kept["sequence"]), True
        except (ValueError, KeyError, TypeError):
            pass
        return 0, True

    def keep(self, sequence: int) -> None:
        """Write down that the logger has this many records; at worst it is asked again after a crash."""
        if self._path is None:
            return
        text = json.dumps({"sequence": sequence, "journal": self._journal.identity()})
        line = f"{text} {zlib.crc32(text.encode()):08x}".ljust(_WIDTH - 1).encode() + b"\n"
        if line == self._kept:
            return
        with suppress(OSError):
            if self._fd is None:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            os.pwrite(self._fd, line, 0)
            self._kept, self.sequence = line, sequence

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


@dataclass
class Description:
    """Describe in ``<journal>.<n>.logger`` a logger that can be made again.

    Attributes:
        number: The logger's number among those that read the journal.
        plugin: The name that its class is registered under; None if it is not.
        kind: Its class's name, for messages.
        state: What `SupportsReplay.replay_state` returned, or None.
        hparams: Hyper-parameters that it did not take yet, or None.
        status: How the run ended, or None while it goes on.
    """

    number: int
    plugin: str | None
    kind: str
    state: dict[str, Any] | None = None
    hparams: Any = None
    status: str | None = None

    @classmethod
    def of(cls, logger: Any, number: int) -> Description:
        """Return the description of a logger as it is now."""
        found = cls(number, registry.loggers.name_of(type(logger)), type(logger).__name__)
        state = getattr(logger, "replay_state", None)
        found.state = state() if callable(state) and found.plugin else None
        return found

    def keep(self, journal: Journal) -> None:
        """Write it beside the journal, if that has a place."""
        if journal.path is None:
            return
        path = f"{journal.path}.{self.number}.logger"
        values = {key: value for key, value in vars(self).items() if key != "number"}
        with suppress(OSError, ValueError, TypeError):
            draft = f"{path}.tmp"
            with open(draft, "w", encoding="utf-8") as file:
                json.dump(values, file)
            os.replace(draft, path)


def descriptions(journal: Path) -> Iterator[Description]:
    """Yield the descriptions of the loggers that read a journal, in their order."""
    for path in sorted(journal.parent.glob(f"{journal.name}.*.logger")):
        number = path.name.removeprefix(f"{journal.name}.").removesuffix(".logger")
        if number.isdigit():
            with suppress(OSError, ValueError, TypeError):
                yield Description(int(number), **json.loads(path.read_text(encoding="utf-8")))


def plain_json(value: Any) -> Any:
    """Return a tree of what JSON can keep; anything else as its name or text."""
    from argparse import Namespace
    from collections.abc import Mapping
    from enum import Enum

    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): plain_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(entry) for entry in value]
    if isinstance(value, Enum):
        return plain_json(value.value)
    if not isinstance(value, (str, int, float, type(None))) and getattr(value, "shape", None) == ():
        value = value.item()  # a scalar of NumPy or torch
    for kind in (bool, int, float, str):  # writers of YAML take no subclasses
        if isinstance(value, kind):
            return kind(value)
    return value if value is None else getattr(value, "__name__", None) or str(value)
