"""Keep beside the journal how each logger is made again in another process."""

from __future__ import annotations

import json
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_interface import registry
from lt_interface.abilities import ability, fact
from lt_interface.versions import replace_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lt_core.tracking.journal import Journal

__all__ = ["Description", "descriptions", "number_of"]


@dataclass
class Description:
    """Logger that can be made again, as ``<journal>.<n>.logger`` keeps it.

    Attributes:
        number: The logger's number among those that read the journal.
        plugin: The name that its class is registered under; None if it is not.
        kind: Its class's name, for messages.
        run: The name and the version that it writes to, as far as they are known.
        folder: Where the journal was.
        state: What `SupportsReplay.replay_state` returned, or None.
        hparams: Hyper-parameters that it did not take yet, or None.
        status: How the run ended, or None while it goes on.
    """

    number: int
    plugin: str | None
    kind: str
    run: list[str | None] | None = None
    folder: str | None = None
    state: dict[str, Any] | None = None
    hparams: Any = None
    status: str | None = None

    @classmethod
    def of(cls, logger: Any, number: int, with_state: bool = True) -> Description:
        """Return the description of a logger as it is now."""
        found = cls(number, registry.loggers.name_of(type(logger)), type(logger).__name__, _run_of(logger))
        state = ability(logger, "replay_state")
        found.state = state() if with_state and state and found.plugin else None
        return found

    def keep(self, journal: Journal) -> None:
        """Write it beside the journal, if that has a place."""
        if journal.path is None:
            return
        self.folder = str(journal.path.parent.resolve())
        values = {key: value for key, value in vars(self).items() if key != "number"}
        with suppress(OSError, ValueError, TypeError):
            replace_text(f"{journal.path}.{self.number}.logger", json.dumps(values))


def _run_of(logger: Any) -> list[str | None]:
    found = [fact(logger, key) for key in ("name", "version")]
    return [None if value is None else str(value) for value in found]


def number_of(journal: Journal, logger: Any) -> int:
    """Return the number under which a journal keeps what a logger has: its own if it was fed from it before.

    One of another process is found by the logger's class, its name and its version.
    """
    for number, known in journal.readers.items():
        if known() is logger:
            return number
    taken = {number for number, known in journal.readers.items() if known() is not None}
    kept = [] if journal.path is None else list(descriptions(journal.path))
    now = Description.of(logger, len(taken), with_state=False)
    free = [d for d in kept if d.number not in taken and _may_be(d.run or [], now.run or [])]
    same = [d.number for d in free if d.kind == now.kind]
    if not same and now.plugin is None:  # a class of the user's own may have another name by now
        same = [d.number for d in free if d.plugin is None and d.number == now.number]
    number = same[0] if same else max([-1, *taken, *(described.number for described in kept)]) + 1
    try:
        journal.readers[number] = weakref.ref(logger)
    except TypeError:  # an object with slots
        journal.readers[number] = lambda: logger
    return number


def _may_be(run: list[str | None], other: list[str | None]) -> bool:
    return all(a == b or None in (a, b) for a, b in zip(run, other, strict=False))


def descriptions(journal: Path) -> Iterator[Description]:
    """Yield the descriptions of the loggers that read a journal, in their order."""
    for path in sorted(journal.parent.glob(f"{journal.name}.*.logger")):
        number = path.name.removeprefix(f"{journal.name}.").removesuffix(".logger")
        if number.isdigit():
            with suppress(OSError, ValueError, TypeError):
                yield Description(int(number), **json.loads(path.read_text(encoding="utf-8")))
