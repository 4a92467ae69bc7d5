"""Agree on the run's folder: which version of which root, and where a resumed run's journal lies."""

from __future__ import annotations

import os
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_core.tracking.dummy import DummyLogger
from lt_core.tracking.journal import NAME, Journal
from lt_interface.abilities import ability, fact
from lt_interface.errors import ConfigError, Problem
from lt_interface.versions import claim_version

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["folder_of", "old_journal", "refuse_twins", "run_folder", "share_version", "version_of"]


def folder_of(logger: Any) -> Path | None:
    """Return the folder of a logger's run, or None."""
    for name in ("directory", "log_dir"):
        if found := fact(logger, name):
            return Path(found)
    return None


def share_version(logger: Any, others: list[Any]) -> None:
    """Make a logger that has no version yet write into the version's folder of the first other one below its root."""
    share, root = ability(logger, "share_version"), fact(logger, "root_dir")
    for other in others:
        if share is None or not root:
            return
        if ability(other, "share_version") and os.path.abspath(fact(other, "root_dir") or "") == os.path.abspath(root):
            share(other.version)
            return


def refuse_twins(loggers: list[Any]) -> None:
    """Refuse two loggers of one kind that would write the same files.

    Raises:
        ConfigError: If there are any; nothing was written yet.
    """
    seen: dict[tuple[type, str], Any] = {}
    for logger in loggers:
        folder = folder_of(logger)
        if folder is None:
            continue
        key = type(logger), os.path.abspath(folder)
        if seen.setdefault(key, logger) is not logger or loggers.count(logger) > 1:
            where = f"Trainer(logger=[{', '.join(type(other).__name__ for other in loggers)}])"
            rule = f"two {type(logger).__name__} must not write to the same folder"
            raise ConfigError(Problem(where, rule, str(folder), "Give one of them another name or version."))


def version_of(run: Run, logger: Any, looks_far: bool) -> int | str | None:
    """Return the version whose folder, below the logger's root, holds a checkpoint; None if it lies elsewhere.

    Looking far, the journal that the checkpoint names may lie there instead.
    """
    root = fact(logger, "root_dir")
    if not root:
        return None
    version = _version_below(root, run.resumed.path or "")
    if version is None and looks_far:
        journal = (run.saves.read(run.resumed.path or "").get("journal") or {}).get("file")
        version = _version_below(root, journal) if journal and Path(journal).exists() else None
    return version


def _version_below(root: str, path: str | os.PathLike[str]) -> int | str | None:
    """Return the version whose folder below a root holds a path; None if none does."""
    try:
        folder = Path(path).resolve().relative_to(Path(root).resolve()).parts[0]
    except (ValueError, IndexError):
        return None
    if Path(root, NAME).is_file() and not Path(root, folder, NAME).is_file():
        return ""  # the root itself is the run's folder
    number = folder.removeprefix("version_")
    return int(number) if folder.startswith("version_") and number.isdigit() else folder


def run_folder(run: Run, mark: dict[str, Any] | None = None) -> Path | None:
    """Return the folder that the journal lies in; None without a logger: then checkpoints carry it.

    Where no logger has a folder, the journal gets one of its own: what a tracker lacks must outlive the process.
    """
    for logger in run.tracking.loggers:
        if (folder := folder_of(logger)) is not None:
            return folder
    if all(isinstance(logger, DummyLogger) for logger in run.tracking.loggers):
        return None
    old = old_journal(run, mark) if run.tracking.adopts else None
    if old is not None:
        return old.parent
    root = Path(run.trainer.default_root_dir) / "lightning_logs"
    return root / f"version_{claim_version(root)}"


def old_journal(run: Run, mark: dict[str, Any] | None) -> Path | None:
    """Return the journal that a checkpoint was written beside, if it is still there: of a copied folder the copy's own.

    One that is shorter than it was then is taken only where no other is found.
    """
    if not mark or not mark.get("file") or run.resumed.path is None:
        return None
    checkpoint = Path(run.resumed.path).absolute()
    near = [folder / NAME for folder in list(checkpoint.parents)[:2]]
    found = [path for path in (*near, Path(mark["file"])) if path.is_file()]
    return next((path for path in found if _goes_on_at(path, mark)), found[-1] if found else None)


def _goes_on_at(path: Path, mark: dict[str, Any]) -> bool:
    """Return whether a run can go on in a journal where a checkpoint says."""
    with closing(Journal(path, read_only=True)) as journal, suppress(ValueError):
        journal.resume(int(mark["offset"]))
        return journal.sequence == int(mark["sequence"])
    return False
