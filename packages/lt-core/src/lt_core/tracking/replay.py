"""Send what a run's loggers lack, from its journal, after the run is over or its process dead."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lt_core.tracking.description import Description, descriptions
from lt_core.tracking.journal import NAME, Journal
from lt_core.tracking.lock import JournalLock
from lt_core.tracking.position import Acknowledgement, Parts, holds
from lt_core.tracking.sender import Delivery
from lt_interface import registry
from lt_interface.errors import ConfigError, Problem

__all__ = ["Replayed", "find_journal", "pending", "replay"]


@dataclass
class Replayed:
    """Result of a replay for one logger.

    Attributes:
        who: The logger's class.
        sent: How many records it got now.
        left: How many it still lacks.
        reason: Why, or an empty string.
    """

    who: str
    sent: int
    left: int
    reason: str = ""


def find_journal(run_dir: str | os.PathLike[str]) -> Path:
    """Return the journal of a run's folder.

    Raises:
        ConfigError: If there is none; names those that lie below.
    """
    folder = Path(run_dir)
    path = folder if folder.suffix == Path(NAME).suffix else folder / NAME
    if path.is_file():
        return path
    below = sorted(str(p.parent) for p in folder.rglob(NAME)) if folder.is_dir() else []
    fix = f"Below it: {', '.join(below[:5])}." if below else "Give the folder of a run: the one that holds it."
    raise ConfigError(Problem(f"replay {str(run_dir)!r}", f"the folder must hold a {NAME}", "none", fix))


def _undescribed(run_dir: str | os.PathLike[str]) -> ConfigError:
    fix = "Give the loggers: lt_core.journal.replay.replay(run_dir, loggers=[...])."
    return ConfigError(Problem(f"replay {str(run_dir)!r}", "no logger is described there", fix=fix))


def pending(run_dir: str | os.PathLike[str]) -> list[Replayed]:
    """Return how many records each logger of a run lacks; nothing is sent."""
    path = find_journal(run_dir)
    known = list(descriptions(path))
    if not known:
        raise _undescribed(run_dir)
    return [Replayed(one.kind, 0, _lacks(path, one.number)) for one in known]


def _meant_for(path: Path, number: int) -> tuple[Journal, Parts]:
    """Return the journal of all runs whose records are meant for a logger, and which of them it has."""
    journal = Journal(path, read_only=True)
    kept = Acknowledgement(journal, number)
    return journal.of_runs(kept.runs), kept.has


def _lacks(path: Path, number: int) -> int:
    journal, has = _meant_for(path, number)
    with closing(journal):
        return sum(not holds(has, record.end) for record in journal.read())


def replay(
    run_dir: str | os.PathLike[str], loggers: Iterable[Any] | None = None, timeout: float = 60.0
) -> list[Replayed]:
    """Send each logger of a run what it lacks, in order, and close it with the status that the run ended with.

    Args:
        run_dir: The run's folder.
        loggers: The loggers, in the order that the trainer had them, where they cannot be made again by name.
        timeout: How many seconds to go on trying without any progress.

    Raises:
        ConfigError: If there is no journal, or its run still goes on.
    """
    path = find_journal(run_dir)
    known: list[tuple[Description, Any]]
    with JournalLock(path):
        kept = {described.number: described for described in descriptions(path)}
        if loggers is None:
            known = [(described, None) for described in kept.values()]
        else:
            known = [(kept.get(n) or Description(n, None, type(one).__name__), one) for n, one in enumerate(loggers)]
        if not known:
            raise _undescribed(run_dir)
        return [_replay_one(path, described, logger, timeout) for described, logger in known]


def _replay_one(path: Path, described: Description, logger: Any, timeout: float) -> Replayed:
    try:
        logger = _made_again(described, path.parent) if logger is None else logger
        journal, _ = _meant_for(path, described.number)
        delivery = Delivery(logger, journal, start=None, number=described.number)
    except Exception as error:
        return Replayed(described.kind, 0, _lacks(path, described.number), f"{type(error).__name__}: {error}")
    before = delivery.lacks()
    hparams, status = described.hparams, described.status or "interrupted"
    delivery.start(hparams)
    end = time.monotonic() + timeout
    while not delivery.flush(timeout) and time.monotonic() < end:
        time.sleep(0.2)
    delivery.stop(status, timeout)
    left = delivery.lacks()
    journal.close()
    return Replayed(described.kind, before - left, left, delivery.trouble)


def _made_again(described: Description, folder: Path) -> Any:
    """Make a logger through the registry: a name that is in a file is never imported, only looked up.

    Where the run's folder was moved, so is the logger's ``save_dir``.

    Raises:
        ConfigError: If it is of no installed kind, or cannot be made again.
    """
    where = f"replay, {described.kind}"
    if described.plugin is None or described.state is None:
        fix = "Give the loggers: lt_core.journal.replay.replay(run_dir, loggers=[...])."
        raise ConfigError(Problem(where, "it is registered under no name, or has no replay_state", fix=fix))
    plugin = registry.loggers.get(described.plugin, where)
    make = getattr(plugin, "from_replay_state", None)
    if make is None:
        raise ConfigError(Problem(where, "this logger cannot be made again: it has no from_replay_state"))
    return make({**described.state, **_moved(described, folder.resolve(), where)})


def _moved(described: Description, folder: Path, where: str) -> dict[str, str]:
    old, home = Path(described.folder or folder), (described.state or {}).get("save_dir")
    if old == folder or not home or not old.is_relative_to(home):
        return {}
    below = old.relative_to(home)
    if below.parts and folder.parts[-len(below.parts) :] == below.parts:
        return {"save_dir": str(Path(*folder.parts[: -len(below.parts)]))}
    rule = "the run's folder must lie below its root as before"
    raise ConfigError(Problem(where, rule, f"{folder}, once {old}", f"Move it to <a folder>/{below}."))
