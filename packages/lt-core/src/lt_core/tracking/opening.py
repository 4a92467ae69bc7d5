"""Open loggers, journal and senders of a run, cut to a resumed checkpoint, and close them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_core.notices import warn
from lt_core.tracking.attempt import Attempt
from lt_core.tracking.description import descriptions
from lt_core.tracking.folder import folder_of, old_journal, refuse_twins, run_folder, share_version, version_of
from lt_core.tracking.journal import NAME, Journal
from lt_core.tracking.lock import JournalLock
from lt_core.tracking.replay import pending
from lt_core.tracking.sender import Delivery
from lt_interface.abilities import ability, fact
from lt_interface.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["Tracking", "open_journal", "open_loggers", "start_deliveries", "stop_deliveries"]

LOCK_SECONDS = 5.0
OPEN_SECONDS = 10.0  # for a logger that declares nothing
IDENTITY_SECONDS = 60.0


class Tracking:
    """Journal, loggers and senders of one run.

    Attributes:
        loggers: The trainer's loggers.
        journal: The journal that due values are appended to; one in memory until it is opened.
        deliveries: One sender a logger, while the run lasts.
        inline: Those that send in the loop's own thread.
        locks: What keeps other processes from the run's folders.
        late: For each logger that could not be opened in time, the attempt that may still go on.
        rewound: For each logger that was brought back to a checkpoint, whether all records are to be sent again.
        opened: Whether the journal is the one that this run goes on with.
        adopts: Whether the run goes on in the folder of the one that it resumes.
    """

    def __init__(self, loggers: list[Any]) -> None:
        self.loggers = loggers
        self.journal = Journal(None)
        self.deliveries: list[Delivery] = []
        self.inline: list[Delivery] = []
        self.locks: list[JournalLock] = []
        self.late: dict[int, Attempt] = {}
        self.rewound: dict[int, bool] = {}
        self.opened = False
        self.adopts = False

    @property
    def journal_file(self) -> str | None:
        """Return the journal's path; None for one in memory."""
        return None if self.journal.path is None else str(self.journal.path)

    def append(self, stage: str, of: str, axis: int, values: dict[str, float], epoch: int | None) -> None:
        """Append values to the journal, and send them at once to loggers that are fed in the loop's own thread."""
        self.journal.append(stage, of, axis, values, epoch=epoch)
        for delivery in self.inline:
            delivery.send()


def open_loggers(run: Run, header: dict[str, Any] | None, adopt: bool) -> None:
    """Start the trackers, in the resumed run's version folder if there is one, and wait no longer than each may need.

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
    for place, logger in enumerate(run.tracking.loggers):
        share_version(logger, run.tracking.loggers[:place])  # before it claims one of its own
        _identify(run, logger)
    refuse_twins(run.tracking.loggers)
    for logger in run.tracking.loggers:  # before anybody touches what may be another's
        folder = folder_of(logger)
        if folder and folder.is_dir():
            _lock(run, folder / NAME)
    for logger in run.tracking.loggers:
        join, folder = ability(logger, "join"), folder_of(logger)
        if join and not run.fits and ability(logger, "forget") and folder and (folder / NAME).is_file():
            join(logger.version)  # what is logged goes behind what the newest run there has logged
        _open(run, logger)


def _identify(run: Run, logger: Any) -> None:
    """Settle what folders are named after; a tracker that never answers must not hang the run.

    Raises:
        ConfigError: If it takes a minute.
    """

    def ask() -> None:
        for name in ("name", "version", "directory"):
            getattr(logger, name, None)

    who = type(logger).__name__
    if not Attempt(ask, f"lt-identify-{who}").within(IDENTITY_SECONDS):
        rule = f"name, version and directory must be known within {IDENTITY_SECONDS:g} s, since folders are named so"
        fix = "Make them known without the tracker, or see why it does not answer."
        raise ConfigError(Problem(f"Trainer.{run.fn}, {who}", rule, "no answer", fix))


def _open(run: Run, logger: Any) -> None:
    """Open a logger; one that hangs or whose tracker is away is left to its delivery, which opens it later."""

    def start() -> None:
        getattr(logger, "experiment", None)

    limit = fact(logger, "open_seconds", OPEN_SECONDS)
    if getattr(logger, "open_seconds", limit) is None:  # it has a limit of its own, and asks for this thread
        start()
        return
    who = type(logger).__name__
    attempt, why = Attempt(start, f"lt-open-{who}"), ""
    try:
        if attempt.within(limit):
            return
    except OSError as error:
        if error.filename is not None or isinstance(error, PermissionError):
            raise  # a file of this machine, or a wrong key: not a tracker that is away
        why = f" ({type(error).__name__}: {error})"
    run.tracking.late[id(logger)] = attempt
    warn(
        f"{who} could not be opened{why or f' within {limit:g} s'}. Training goes on; what is logged waits in the "
        "journal, and is delivered when the logger opens."
    )


def _go_on(run: Run, header: dict[str, Any], adopt: bool) -> None:
    """Bring loggers back to the checkpoint: where its run goes on, or where they write to that run's folder anyway."""
    step = max(int(header.get("progress", {}).get("step", 0)) - 1, 0)
    for place, logger in enumerate(run.tracking.loggers):
        if not adopt:
            share_version(logger, run.tracking.loggers[:place])
        rewind, join = ability(logger, "rewind"), ability(logger, "join")
        if not (rewind or join):
            continue
        # Its own folder may hold the journal of a checkpoint that lies elsewhere.
        is_used = not adopt and (own := folder_of(logger)) is not None and (own / NAME).is_file()
        version = version_of(run, logger, adopt or is_used)
        if version is None or (not adopt and str(logger.version) != str(version)):
            continue
        folder = Path(logger.root_dir) / (f"version_{version}" if isinstance(version, int) else version)
        if (folder / NAME).is_file():
            _lock(run, folder / NAME)
        if rewind:
            run.tracking.rewound[id(logger)] = rewind(step, version)
        elif join:
            join(version)


def open_journal(run: Run, checkpoint: dict[str, Any] | None) -> None:
    """Open the journal: cut to the checkpoint when its run goes on, its beginning copied when a new run does."""
    trainer, tracking = run.trainer, run.tracking
    resumes = run.fits and checkpoint is not None
    if trainer._journal is not None and not resumes:  # a further call of the same trainer goes on in its journal
        last, writes = trainer._journal, run.world.is_global_zero
        trainer._journal = tracking.journal = last.writable() if writes else last.in_memory()
        tracking.opened = True
        return
    mark = (checkpoint or {}).get("journal")
    folder = run_folder(run, mark) if run.world.is_global_zero else None
    if folder is None:
        records = (mark or {}).get("records")
        if records is not None:
            tracking.journal.fill(bytes(records.tolist()))
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _lock(run, folder / NAME)
            tracking.journal = _opened(run, folder / NAME, mark)
        except OSError as error:
            raise _unwritable(run, folder, error) from error
    trainer._journal, tracking.opened = tracking.journal, True


def _lock(run: Run, path: Path) -> None:
    """Keep other processes from the journal; a replay that is about to end is waited for.

    Raises:
        ConfigError: If another process holds it.
    """
    lock, end = JournalLock(path), time.monotonic() + LOCK_SECONDS
    if any(held.path == lock.path for held in run.tracking.locks):
        return
    with suppress(OSError):  # no files can be made there, which is reported later, or no locks be had
        while not lock.acquire():
            if time.monotonic() >= end:
                where = f"Trainer.{run.fn}, run folder {str(path.parent)!r}"
                fix = "Wait until that has ended, or give another version."
                raise lock.refusal(where, "no other process must be writing to it", fix)
            time.sleep(0.1)
        run.tracking.locks.append(lock)


def _unwritable(run: Run, folder: Path, error: OSError) -> ConfigError:
    """Return the error for a run folder that takes no file, or raise the one of the callback that chose it."""
    from lt_core.checkpoint.preflight import check_saving

    if run.fits:
        check_saving(run)
    where, rule = f"Trainer.{run.fn}, run folder {str(folder)!r}", "the journal must be writable there"
    fix = "Choose another default_root_dir, or another folder for the first logger."
    return ConfigError(Problem(where, rule, f"{type(error).__name__}: {error}", fix))


def _opened(run: Run, path: Path, mark: dict[str, Any] | None) -> Journal:
    old = old_journal(run, mark) if run.fits else None
    is_used = path.exists()
    journal = Journal(path)
    if not run.fits:
        return journal
    if old is None or mark is None:
        if is_used:
            _warn_of_rest(path)
        journal.begin()
        return journal
    source = journal if old.resolve() == path.resolve() else Journal(old, read_only=True)
    if source.size >= int(mark["offset"]):
        source.resume(int(mark["offset"]))
    else:  # the machine went down, and took what was not on its disk yet
        lost = int(mark["sequence"]) - source.sequence
        warn(f"Trainer.{run.fn}: {lost} records of metrics before the checkpoint are not in {old} any more.")
    if source is not journal:
        journal.begin()
        journal.fill(source.contents())
        source.close()
    return journal


def _warn_of_rest(path: Path) -> None:
    """Warn where loggers of an earlier run did not get all that it has logged."""
    if any(descriptions(path)) and any(one.left for one in pending(path)):
        warn(
            f"{path.parent}: an earlier run has records there that its loggers did not get. They are kept. "
            f"Send them with: python -m lt_core.journal replay {path.parent}"
        )


def start_deliveries(run: Run, hparams: dict[str, Any] | None) -> None:
    """Start one thread a logger; each begins where its logger's records end, after the hyper-parameters.

    A logger that was rewound gets all again, or lacks what came after the checkpoint. Any other
    gets what it did not acknowledge, and nothing that it has a second time.
    """
    if not run.world.is_global_zero:
        return
    tracking, journal = run.tracking, run.tracking.journal
    clock = partial(getattr, run.trainer, "global_step")
    for logger in tracking.loggers:
        again = tracking.rewound.get(id(logger))
        start = 0 if again else journal.offset if journal.path is None else None
        late = tracking.late.get(id(logger))
        inline = (fact(logger, "delivery") or run.trainer.logger_delivery) == "sync" and late is None
        ended = _shared_lock(run)
        delivery = Delivery(logger, journal, start, again is False, inline, clock=clock, ended=ended, late=late)
        tracking.deliveries.append(delivery)
        if inline:
            tracking.inline.append(delivery)
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
