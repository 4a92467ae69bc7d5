"""Agree on the run's folder: open loggers and the journal, and cut both to a resumed checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_core.notices import warn
from lt_core.tracking.dummy import DummyLogger
from lt_core.tracking.journal import NAME, Journal
from lt_core.tracking.lock import JournalLock
from lt_core.tracking.position import descriptions
from lt_core.tracking.replay import pending
from lt_core.tracking.sender import Delivery
from lt_interface.errors import ConfigError, Problem
from lt_interface.versions import claim_version

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["Tracking", "open_journal", "open_loggers", "start_deliveries", "stop_deliveries"]

LOCK_SECONDS = 5.0


class Tracking:
    """Journal, loggers and senders of one run.

    Attributes:
        loggers: The trainer's loggers.
        journal: The journal that due values are appended to; one in memory until it is opened.
        journal_file: Its path, if it has one.
        deliveries: One sender a logger, while the run lasts.
        inline: Those that send in the loop's own thread.
        locks: What keeps other processes from the run's folders.
        rewound: For each logger that was brought back to a checkpoint, whether it wants all records again.
        adopts: Whether the run goes on in the folder of the one that it resumes.
    """

    def __init__(self, loggers: list[Any]) -> None:
        self.loggers = loggers
        self.journal = Journal(None)
        self.journal_file: str | None = None
        self.deliveries: list[Delivery] = []
        self.inline: list[Delivery] = []
        self.locks: list[JournalLock] = []
        self.rewound: dict[int, bool] = {}
        self.adopts = False

    def append(self, stage: str, of: str, axis: int, values: dict[str, float]) -> None:
        """Append values to the journal, and send them at once where a logger wants it so."""
        self.journal.append(stage, of, axis, values)
        for delivery in self.inline:
            delivery.send()


def open_loggers(run: Run, header: dict[str, Any] | None, adopt: bool) -> None:
    """Start the trackers on the main thread, in the resumed run's version folder if there is one.

    Args:
        run: The run.
        header: The header of the checkpoint that is resumed, or None.
        adopt: Whether to go on in the version folder that the checkpoint lies in.
    """
    run.tracking.adopts = header is not None and run.fits and adopt
    if not run.world.is_global_zero:
        return
    if header is not None and run.fits:
        _go_on(run, header, adopt)
    _share_versions(run.tracking.loggers)
    _refuse_twins(run.tracking.loggers)
    for logger in run.tracking.loggers:  # before anybody touches what may be another's
        folder = getattr(logger, "directory", None)
        if folder and os.path.isdir(folder):
            _lock(run, Path(folder) / NAME)
    for logger in run.tracking.loggers:
        getattr(logger, "experiment", None)


def _go_on(run: Run, header: dict[str, Any], adopt: bool) -> None:
    """Bring loggers back to the checkpoint: where its run goes on, or where they write to that run's folder anyway."""
    step = max(int(header.get("progress", {}).get("step", 0)) - 1, 0)
    for logger in run.tracking.loggers:
        if not hasattr(logger, "rewind") and not hasattr(logger, "join"):
            continue
        version = _version_of(run, logger, adopt)
        if version is None or (not adopt and str(logger.version) != str(version)):
            continue
        folder = Path(logger.root_dir) / (f"version_{version}" if isinstance(version, int) else version)
        if (folder / NAME).is_file():
            _lock(run, folder / NAME)
        if hasattr(logger, "rewind"):
            run.tracking.rewound[id(logger)] = logger.rewind(step, version)
        else:
            logger.join(version)


def _share_versions(loggers: list[Any]) -> None:
    """Let loggers below one root write into one version's folder, that of the first."""
    versions: dict[str, int | str] = {}
    for logger in loggers:
        root = getattr(logger, "root_dir", None) if hasattr(logger, "share_version") else None
        if not root:
            continue
        root = os.path.abspath(root)
        if root in versions:
            logger.share_version(versions[root])
        versions.setdefault(root, logger.version)


def _refuse_twins(loggers: list[Any]) -> None:
    """Refuse two loggers of one kind that would write the same files.

    Raises:
        ConfigError: If there are any; nothing was written yet.
    """
    seen: dict[tuple[type, str], Any] = {}
    for logger in loggers:
        folder = getattr(logger, "directory", None)
        if not folder:
            continue
        key = type(logger), os.path.abspath(folder)
        if seen.setdefault(key, logger) is not logger or loggers.count(logger) > 1:
            where = f"Trainer(logger=[{', '.join(type(other).__name__ for other in loggers)}])"
            rule = f"two {type(logger).__name__} must not write to the same folder"
            raise ConfigError(Problem(where, rule, str(folder), "Give one of them another name or version."))


def _version_of(run: Run, logger: Any, looks_far: bool) -> int | str | None:
    """Return the version whose folder, below the logger's root, holds a checkpoint; None if it lies elsewhere.

    Looking far, the journal that the checkpoint names may lie there instead.
    """
    root = getattr(logger, "root_dir", None)
    if not root:
        return None
    try:
        first = Path(run.resumed.path or "").resolve().relative_to(Path(root).resolve()).parts[0]
    except (ValueError, IndexError):
        return _version_of_journal(run, Path(root)) if looks_far else None
    return _version_name(first)


def _version_of_journal(run: Run, root: Path) -> int | str | None:
    """Return the version that a checkpoint kept elsewhere names by its journal's place."""
    name = (run.saves.io.load(run.resumed.path).get("journal") or {}).get("file")
    if not name or not Path(name).exists():
        return None
    try:
        return _version_name(Path(name).resolve().relative_to(root.resolve()).parts[0])
    except (ValueError, IndexError):
        return None


def _version_name(folder: str) -> int | str:
    number = folder.removeprefix("version_")
    return int(number) if folder.startswith("version_") and number.isdigit() else folder


def run_folder(run: Run, mark: dict[str, Any] | None = None) -> Path | None:
    """Return the folder that the journal lies in; None without a logger: then checkpoints carry it.

    Where no logger has a folder, the journal gets one of its own: what a tracker lacks must outlive the process.
    """
    for logger in run.tracking.loggers:
        directory = getattr(logger, "directory", None) or getattr(logger, "log_dir", None)
        if directory:
            return Path(directory)
    if not run.tracking.loggers or all(isinstance(logger, DummyLogger) for logger in run.tracking.loggers):
        return None
    old = _old_journal(run, mark) if run.tracking.adopts else None
    if old is not None:
        return old.parent
    root = Path(run.trainer.default_root_dir) / "lightning_logs"
    return root / f"version_{claim_version(root)}"


def open_journal(run: Run, checkpoint: dict[str, Any] | None) -> None:
    """Open the journal: cut to the checkpoint when its run goes on, its beginning copied when a new run does."""
    trainer = run.trainer
    resumes = run.fits and checkpoint is not None
    if trainer._journal is not None and not resumes:  # a further call of the same trainer goes on in its journal
        run.tracking.journal, run.tracking.journal_file = trainer._journal, trainer._journal_file
        return
    mark = (checkpoint or {}).get("journal")
    folder = run_folder(run, mark) if run.world.is_global_zero else None
    if folder is None:
        records = ((checkpoint or {}).get("journal") or {}).get("records")
        if records is not None:
            run.tracking.journal.fill(bytes(records.tolist()))
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _lock(run, folder / NAME)
            run.tracking.journal = _opened(run, folder / NAME, mark)
        except OSError as error:
            raise _unwritable(run, folder, error) from error
    run.tracking.journal_file = None if run.tracking.journal.path is None else str(run.tracking.journal.path)
    trainer._journal, trainer._journal_file = run.tracking.journal, run.tracking.journal_file


def _lock(run: Run, path: Path) -> None:
    """Keep other processes from the journal; a replay that is about to end is waited for.

    Raises:
        ConfigError: If another process goes on with it.
    """
    lock, end = JournalLock(path), time.monotonic() + LOCK_SECONDS
    if any(held.path == lock.path for held in run.tracking.locks):
        return
    while True:
        try:
            if lock.acquire():
                run.tracking.locks.append(lock)
                return
        except OSError:  # no files can be made there, which others tell better, or no locks be had
            return
        if time.monotonic() >= end:
            where = f"Trainer.{run.fn}, run folder {str(path.parent)!r}"
            rule, fix = "no other process must be writing to it", "Wait until that has ended, or give another version."
            raise lock.refusal(where, rule, fix)
        time.sleep(0.1)


def _unwritable(run: Run, folder: Path, error: OSError) -> ConfigError:
    """Return the error for a run folder that takes no file, or raise the one of the callback that chose it."""
    from lt_core.checkpoint.preflight import check_saving

    if run.fits:
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
    if not run.fits:
        return Journal(path)
    if old is None or mark is None:
        _clear(path)  # a folder used again by a new run
        return Journal(path)
    if old.resolve() != path.resolve():
        with open(old, "rb") as source, open(path, "wb") as target:
            target.write(source.read(int(mark["offset"])))
    journal = Journal(path)
    if journal.offset >= int(mark["offset"]):
        journal.cut(int(mark["offset"]), int(mark["sequence"]))
    else:  # the machine went down, and took what was not on its disk yet
        lost = int(mark["sequence"]) - journal.sequence
        warn(f"Trainer.{run.fn}: {lost} records of metrics before the checkpoint are not in {path} any more.")
    return journal


def _clear(path: Path) -> None:
    """Remove an older run's journal; one that holds what a logger did not get yet is set aside."""
    files = [file for file in path.parent.glob(f"{path.name}*") if file.name != f"{path.name}.lock"]
    if path.exists() and any(descriptions(path)) and any(one.left for one in pending(path)):
        free = next(n for n in count(1) if not path.with_name(f"{path.stem}-{n}{path.suffix}").exists())
        for file in files:
            file.rename(file.with_name(file.name.replace(path.stem, f"{path.stem}-{free}", 1)))
        aside = path.with_name(f"{path.stem}-{free}{path.suffix}")
        warn(
            f"{path.parent}: an earlier run has records there that its loggers did not get. They are kept. "
            f"Send them with: python -m lt_core.journal replay {aside}"
        )
        return
    for file in files:
        file.unlink()


def _old_journal(run: Run, mark: dict[str, Any] | None) -> Path | None:
    """Return the journal that a checkpoint was written beside, if it is still there.

    One that is shorter than it was then is taken only where no other is found.
    """
    if not mark or not mark.get("file") or run.resumed.path is None:
        return None
    checkpoint = Path(run.resumed.path).absolute()
    near = [folder / NAME for folder in list(checkpoint.parents)[:2]]  # the folder may have been moved
    found = [path for path in (Path(mark["file"]), *near) if path.is_file()]
    return next((path for path in found if path.stat().st_size >= int(mark["offset"])), found[0] if found else None)


def start_deliveries(run: Run, hparams: dict[str, Any] | None) -> None:
    """Start one thread a logger; each begins where its logger's records end, after the hyper-parameters.

    A logger that was rewound either wants all again, or lacks what came after the checkpoint. Any other
    gets what it did not acknowledge, and nothing that it has a second time.
    """
    if not run.world.is_global_zero:
        return
    for logger in run.tracking.loggers:
        again = run.tracking.rewound.get(id(logger))
        has_at_most = run.tracking.journal.sequence if again is False else None
        start = 0 if again else run.tracking.journal.offset if run.tracking.journal.path is None else None
        inline = (getattr(logger, "delivery", None) or run.trainer.logger_delivery) == "sync"
        clock = partial(getattr, run.trainer, "global_step")
        delivery = Delivery(
            logger, run.tracking.journal, start, has_at_most, inline, clock=clock, ended=_shared_lock(run)
        )
        run.tracking.deliveries.append(delivery)
        if inline:
            run.tracking.inline.append(delivery)
        delivery.start(hparams if hasattr(logger, "log_hyperparams") else None)


def _shared_lock(run: Run) -> Callable[[], None] | None:
    """Hold the lock once more for a delivery, which may go on after the run; return what releases it."""
    if run.tracking.journal.path is None:
        return None
    lock = JournalLock(run.tracking.journal.path)
    with suppress(OSError):
        lock.acquire()
    return lock.release


def stop_deliveries(run: Run, status: str, timeout: float | None = None) -> None:
    """Send what is still due, close the loggers, and end their threads."""
    deliveries, run.tracking.deliveries, run.tracking.inline = run.tracking.deliveries, [], []
    with ExitStack() as rest:  # each gets its turn though an earlier one is interrupted
        while run.tracking.locks:
            rest.callback(run.tracking.locks.pop().release)
        for delivery in reversed(deliveries):
            rest.callback(delivery.stop, status, timeout)
