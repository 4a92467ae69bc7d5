"""Agree on the run's folder: open loggers and the journal, and cut both to a resumed checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_core.delivery import Delivery
from lt_core.journal import Journal
from lt_core.state import TrainerFn
from lt_interface.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lt_core.run import Run

__all__ = ["open_journal", "open_loggers", "start_deliveries", "stop_deliveries"]

JOURNAL = "metrics.journal"


def open_loggers(run: Run, header: dict[str, Any] | None, adopt: bool) -> None:
    """Start the trackers on the main thread, in the resumed run's version folder if there is one.

    Args:
        run: The run.
        header: The header of the checkpoint that is resumed, or None.
        adopt: Whether to go on in the version folder that the checkpoint lies in.
    """
    run.loggers = run.trainer.loggers
    if not run.world.is_global_zero:
        return
    run.rewound = {}
    if header is not None and run.fn is TrainerFn.FITTING and adopt:
        step = max(int(header.get("progress", {}).get("step", 0)) - 1, 0)
        for logger in run.loggers:
            version = _version_of(run, logger)
            if version is not None and hasattr(logger, "rewind"):
                run.rewound[id(logger)] = logger.rewind(step, version)
    for logger in run.loggers:
        _ = logger.experiment if hasattr(logger, "experiment") else None


def _version_of(run: Run, logger: Any) -> int | str | None:
    """Return the version whose folder, below the logger's root, holds a checkpoint; None if it lies elsewhere."""
    root = getattr(logger, "root_dir", None)
    if not root:
        return None
    try:
        first = Path(run.resume_path or "").resolve().relative_to(Path(root).resolve()).parts[0]
    except (ValueError, IndexError):
        return _version_of_journal(run, Path(root))
    return _version_name(first)


def _version_of_journal(run: Run, root: Path) -> int | str | None:
    """Return the version that a checkpoint kept elsewhere names by its journal's place."""
    name = (run.checkpoint_io.load(run.resume_path).get("journal") or {}).get("file")
    if not name or not Path(name).exists():
        return None
    try:
        return _version_name(Path(name).resolve().relative_to(root.resolve()).parts[0])
    except (ValueError, IndexError):
        return None


def _version_name(folder: str) -> int | str:
    number = folder.removeprefix("version_")
    return int(number) if folder.startswith("version_") and number.isdigit() else folder


def run_folder(run: Run) -> Path | None:
    """Return the folder that the journal lies in; None without a logger: then checkpoints carry it."""
    for logger in run.loggers:
        directory = getattr(logger, "directory", None) or getattr(logger, "log_dir", None)
        if directory:
            return Path(directory)
    return None


def open_journal(run: Run, checkpoint: dict[str, Any] | None) -> None:
    """Open the journal: cut to the checkpoint when its run goes on, its beginning copied when a new run does."""
    trainer = run.trainer
    resumes = run.fn is TrainerFn.FITTING and checkpoint is not None
    if trainer._journal is not None and not resumes:  # a further call of the same trainer goes on in its journal
        run.journal, run.journal_file = trainer._journal, trainer._journal_file
        return
    folder = run_folder(run)
    if folder is None or not run.world.is_global_zero:
        run.journal = Journal(None)
        records = ((checkpoint or {}).get("journal") or {}).get("records")
        if records is not None:
            run.journal.fill(bytes(records.tolist()))
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            run.journal = _opened(run, folder / JOURNAL, (checkpoint or {}).get("journal"))
        except OSError as error:
            raise _unwritable(run, folder, error) from error
    run.journal_file = None if run.journal.path is None else str(run.journal.path)
    trainer._journal, trainer._journal_file = run.journal, run.journal_file


def _unwritable(run: Run, folder: Path, error: OSError) -> ConfigError:
    """Return the error for a run folder that takes no file, or raise the one of the callback that chose it."""
    from lt_core.checkpoint.preflight import check_saving

    if run.fn is TrainerFn.FITTING:
        check_saving(run)
    return ConfigError(
        Problem(
            f"Trainer.{run.fn}, run folder {str(folder)!r}",
            "the journal must be writable there",
            f"{type(error).__name__}: {error}",
            "Choose another default_root_dir, or another folder for the first logger.",
        )
    )


def _opened(run: Run, path: Path, mark: dict[str, Any] | None) -> Journal:
    old = _old_journal(run, mark)
    if run.fn is not TrainerFn.FITTING:
        return Journal(path)
    if old is None or mark is None:
        if path.exists():
            path.unlink()  # a folder used again by a new run
        return Journal(path)
    if old.resolve() != path.resolve():
        with open(old, "rb") as source, open(path, "wb") as target:
            target.write(source.read(int(mark["offset"])))
    journal = Journal(path)
    if journal.offset >= int(mark["offset"]):
        journal.cut(int(mark["offset"]), int(mark["sequence"]))
    return journal


def _old_journal(run: Run, mark: dict[str, Any] | None) -> Path | None:
    """Return the journal that a checkpoint was written beside, if it is still there and long enough."""
    if not mark or not mark.get("file") or run.resume_path is None:
        return None
    checkpoint = Path(run.resume_path).absolute()
    near = [folder / JOURNAL for folder in list(checkpoint.parents)[:2]]  # the folder may have been moved
    for path in (Path(mark["file"]), *near):
        if path.is_file() and path.stat().st_size >= int(mark["offset"]):
            return path
    return None


def start_deliveries(run: Run) -> None:
    """Start one thread a logger; each begins where its logger's records end.

    A logger that was rewound either wants all again, or lacks what came after the checkpoint. Any other
    gets what it did not acknowledge, and nothing that it has a second time.
    """
    if not run.world.is_global_zero or run.journal is None:
        return
    for logger in run.loggers:
        again = run.rewound.get(id(logger))
        has_at_most = run.journal.sequence if again is False else None
        start = 0 if again else run.journal.offset if run.journal.path is None else None
        delivery = Delivery(logger, run.journal, start, has_at_most)
        delivery.start()
        run.deliveries.append(delivery)


def stop_deliveries(run: Run, status: str, timeout: float = 30.0) -> None:
    """Send what is still due, close the loggers, and end their threads."""
    deliveries, run.deliveries = run.deliveries, []
    for delivery in deliveries:
        delivery.stop(status, timeout)
