"""Find the checkpoint that ``ckpt_path`` means: which run, and which of its files.

Files are known by what they say of themselves, not by their names: their headers have the counters, and the mark of the
run that wrote them. ``"last"`` is the run that was begun or resumed last; ``"auto"`` the same, if that is a run of this
fit that has not come to its end. Within a run the counters decide, and what lies behind the place to which the run was
brought back later does not count. Files without a mark are one run a folder.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_core.checkpoint.engine_folder import KEY
from lt_core.checkpoint.format.reading import peek, verify
from lt_core.checkpoint.runs import FINISHED, RUNNING, RunMark, is_live, read_records
from lt_core.notices import info, warn
from lt_core.state.agreement import decided_by_rank_zero
from lt_interface.abilities import fact
from lt_interface.errors import CheckpointError, ConfigError, Problem
from lt_interface.jobs import current_jobs

if TYPE_CHECKING:
    from lt_core.state.run import Run
    from lt_core.trainer import Trainer

__all__ = ["WORDS", "default_folders", "find_checkpoint", "find_last", "search_folders"]

WORDS = ("last", "auto", "best", "hpc")  # what ckpt_path may be besides a path
_SUFFIXES = {".ckpt", ".safetensors"}


@dataclass(eq=False)
class _File:
    """One checkpoint: its path, its counters, the mark of its run, and whether more than the weights is in it."""

    path: Path
    place: int
    header: dict[str, Any]
    mark: RunMark | None

    def __post_init__(self) -> None:
        keys = self.header.get("keys")
        self.resumable = keys is None or "optimizer_states" in keys or KEY in keys
        progress = self.header.get("progress")
        known = progress if isinstance(progress, dict) else {}

        def count(key: str) -> int:
            return value if type(value := known.get(key, 0)) is int else 0

        self.step = count("step")
        try:
            self.date = self.path.stat().st_mtime_ns
        except OSError:
            self.date = 0
        # With equal counters a file with a name of its own is newer than its copy "last".
        own = not self.path.stem.startswith("last")
        exact = known.get("exact") is not False
        counters = self.step, count("epoch"), count("batch"), exact, count("save_counter")
        self.order = (*counters, own, -self.place, self.date)

    def fits(self, parameters: str | None) -> bool:
        """Return whether it is of a model with these parameters, as far as it says."""
        noted = self.header.get("parameters")
        return parameters is None or noted in (None, parameters) or KEY in (self.header.get("keys") or ())


@dataclass(eq=False)
class _FoundRun:
    """One run: its files, and what its record and its newest file say of it.

    Attributes:
        files: The newest first.
        start: When it was last begun; for files without a mark, when the oldest was written.
        status: As the record says; running where there is none.
        jobs: The jobs in which it was last begun.
    """

    mark: RunMark | None
    files: list[_File]
    start: float = 0.0
    status: str = RUNNING
    jobs: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if self.mark is None:
            return f"of {self.files[0].path.parent}, whose files name no run"
        ends = {RUNNING: "did not come to its end", FINISHED: "is finished"}.get(self.status, f"was {self.status}")
        return f"of the run that began {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.start))} and {ends}"


class _Survey:
    """All runs of some folders, the one that was begun last first.

    Args:
        folders: Where to look; folders below them are not searched. The first counts where all else is equal.
        parameters: Only files of a model with this `parameter_signature` count; any if None.
        io: The format that is tried first; None for those that are known here.

    Attributes:
        passed: What was left out, as phrases for one line.
    """

    def __init__(self, folders: Iterable[str | os.PathLike[str]], parameters: str | None, io: Any) -> None:
        self.folders, self.io = list(folders), io
        self.bad: list[str] = []
        self.passed: Counter[str] = Counter()
        groups: dict[str, list[_File]] = {}
        for path, place in _candidates(self.folders).items():
            try:
                header = peek(path, io)
            except Exception as error:  # a format of the user's may raise whatever it likes
                self.bad += [str(error)] if path.is_file() else []  # a folder may be anything
                continue
            file = _File(path, place, header, RunMark.read(header.get("run")))
            if file.fits(parameters):
                groups.setdefault(file.mark.id if file.mark else str(path.parent), []).append(file)
            else:
                self.passed["of another model"] += 1
        records = read_records(self.folders)
        self.runs = [_assembled(files, records) for files in groups.values()]
        self.runs.sort(key=lambda run: (run.start, run.files[0].order), reverse=True)

    def left_out(self) -> str:
        """Return what was left out, as the end of a line."""
        listed = ", ".join(f"{count} {what}" for what, count in self.passed.items())
        return f" Passed over: {listed}." if listed else ""

    def keep(self, wanted: Callable[[_FoundRun], bool], what: str) -> None:
        """Leave out the runs that are not wanted."""
        before, self.runs = len(self.runs), [run for run in self.runs if wanted(run)]
        self.passed += Counter({what: before - len(self.runs)})

    def keep_resumable(self) -> None:
        """Leave out files that hold weights only, and the runs that have no others."""
        for run in self.runs:
            before, run.files = len(run.files), [file for file in run.files if file.resumable]
            self.passed += Counter({"with weights only": before - len(run.files)})
        self.runs = [run for run in self.runs if run.files]

    def newest(self) -> tuple[_FoundRun, Path] | None:
        """Return the first run that has a valid file, and its newest; damaged files are named in one warning."""
        best = next(((run, file.path) for run in self.runs for file in run.files if self._is_valid(file.path)), None)
        if self.bad:
            taken = f"Taken instead: {best[1]}." if best is not None else "No valid one was found."
            warn("These checkpoints cannot be used and are passed over. " + " ".join(self.bad) + " " + taken)
        return best

    def _is_valid(self, path: Path) -> bool:
        try:
            verify(path, self.io)
        except Exception as error:
            self.bad.append(str(error))
            return False
        return True


def _assembled(files: list[_File], records: dict[str, tuple[RunMark, dict[str, Any]]]) -> _FoundRun:
    """Return the run of some files."""
    marked = [(file.mark, file.header) for file in files if file.mark is not None]
    if not marked:
        files.sort(key=lambda file: file.order, reverse=True)
        return _FoundRun(None, files, min(file.date for file in files) / 1e9)
    mark, header = max(marked, key=lambda one: one[0].newest_start)
    run = _FoundRun(mark, files, jobs=list(header["run"].get("jobs") or ()))
    marks = [one for one, _ in marked]
    known, values = records.get(mark.id, (None, {}))
    if known is not None and known.newest_start >= mark.newest_start:
        marks.append(known)
        run.mark, run.status, run.jobs = known, str(values.get("status")), list(values.get("jobs") or ())

    def is_left_behind(file: _File) -> bool:
        own = 0.0 if file.mark is None else file.mark.newest_start
        return any(mark.newest_start > own and mark.from_step < file.step for mark in marks)

    run.files = sorted(files, key=lambda file: (not is_left_behind(file), file.order), reverse=True)
    run.start = max(mark.newest_start for mark in marks)
    return run


def find_last(folders: Iterable[str | os.PathLike[str]], parameters: str | None = None, io: Any = None) -> Path | None:
    """Return the newest valid checkpoint of the run in some folders that was begun last, or None.

    Newest by the counters in the files: steps, then epochs and batches completed; then exact ones before those saved
    inside a hook, then the counter of saves. Damaged files are named in one warning and passed over.

    Args:
        folders: Where to look; folders below them are not searched.
        parameters: Only files of a model with this `parameter_signature` count; any if None.
            So do files whose weights an engine wrote beside them, and those of a format that notes none.
        io: The format that is tried first; None for those that are known here.
    """
    found = _Survey(folders, parameters, io).newest()
    return None if found is None else found[1]


def _candidates(folders: Iterable[str | os.PathLike[str]]) -> dict[Path, int]:
    """Return the files that may be checkpoints, each with the number of its folder."""
    found: dict[str, tuple[Path, int]] = {}
    for place, folder in enumerate(folders):
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            path = Path(folder) / name
            if path.suffix in _SUFFIXES and not name.startswith(".") and path.exists():
                # A link stands for its file: the file's own name is the one to go on with.
                found.setdefault(os.path.realpath(path), (path, place))
    return dict(found.values())


def find_checkpoint(run: Run, ckpt_path: str | os.PathLike[str] | None, ordinal: int = 1) -> str | None:
    """Return the file that ``ckpt_path`` means, or None to start without one; rank 0 looks, for all ranks.

    Args:
        run: The run.
        ckpt_path: What the call was given.
        ordinal: Which fit of its process it is.

    Raises:
        ConfigError: If ``"best"`` is asked for and there is none.
        CheckpointError: If the path does not exist.
    """
    if ckpt_path is None:
        return None
    return decided_by_rank_zero(run, lambda: _find(run, os.fspath(ckpt_path), ordinal))


def _find(run: Run, path: str, ordinal: int) -> str | None:
    if path == "best":
        return _best(run)
    if path in ("last", "auto"):
        return _chosen(run, path, ordinal)
    if path == "hpc":
        return _hpc(run)
    if not os.path.exists(path):
        raise CheckpointError(_missing(run, path))
    return path


def _chosen(run: Run, word: str, ordinal: int) -> str | None:
    """Return the file that "last" or "auto" means, and say in one line which and why."""
    from lt_core.checkpoint.format.signature import parameter_signature

    state = run.module.state_dict()
    folders = search_folders(run.trainer)
    survey = _Survey(folders, parameter_signature(state) if state else None, run.saves.io)
    where = f'{run.fn}(ckpt_path="{word}")'
    own = run.trainer._run_id
    again = {job.id for job in current_jobs() if job.restarts}
    of_job = [one for one in survey.runs if one.mark and one.mark.ordinal == ordinal and again & set(one.jobs)]
    by_job = bool(run.fits and again and (of_job or word == "auto"))
    if run.fits:
        survey.keep_resumable()
    if by_job:
        survey.keep(lambda one: one in of_job, "of other jobs")
    elif word == "last":  # what this trainer trained itself comes first, whoever else saves there
        survey.runs.sort(key=lambda one: one.mark is None or one.mark.id != own)
    elif run.fits:
        survey.keep(lambda one: one.mark is None or not is_live(survey.folders, one.mark.id), "still going on")
        survey.keep(
            lambda one: one.mark is None or one.mark.ordinal == ordinal or one.mark.id == own,
            "of other fits of a program",
        )
    found = survey.newest()
    if found is None:
        if word == "last":
            looked = ", ".join(str(folder) for folder in folders[:3]) or run.trainer.default_root_dir
            start = "starting from the beginning" if run.fits else "the weights stay as they are"
            warn(f"{where}: no checkpoint was found in {looked}; {start}.{survey.left_out()}")
        elif survey.passed and run.fits:
            fix = ' To go on with the newest run nonetheless, write ckpt_path="last".'
            info(f"{where}: a new run begins, since there is none to go on with.{survey.left_out()}{fix}")
        return None
    chosen, path = found
    if run.fits and word == "auto" and chosen.status == FINISHED and not by_job:
        info(
            f"{where}: a new run begins, since the newest checkpoint, {path}, is {chosen}.{survey.left_out()} "
            'To train that one further, write ckpt_path="last".'
        )
        return None
    why = ", that this job had begun before" if by_job else ""
    info(f"{where}: resuming from {path}, the newest {chosen}{why}.{survey.left_out()}")
    return str(path)


def _missing(run: Run, path: str) -> str:
    folder = os.path.dirname(path) or "."
    there = sorted(f for f in os.listdir(folder) if not f.startswith("."))[:10] if os.path.isdir(folder) else []
    fix = f"In {folder}: {', '.join(there)}." if there else 'Give an existing file, or "last", "best" or "auto".'
    return str(Problem(f"{run.fn}(ckpt_path={path!r})", "this file must exist", "no such file", fix))


def _best(run: Run) -> str:
    trainer = run.trainer
    where = f'{run.fn}(ckpt_path="best")'
    if trainer.fast_dev_run:
        rule = "fast_dev_run saves no checkpoint, so there is no best one"
        raise ConfigError(Problem(where, rule, fix="Pass a path."))
    callback = trainer.checkpoint_callback
    if callback is None:
        raise ConfigError(Problem(where, "this needs a ModelCheckpoint among the callbacks", fix="Pass a path."))
    best: str = callback.best_model_path
    if not best:
        raise ConfigError(Problem(where, "no checkpoint has been saved yet", fix="Run fit first, or pass a path."))
    if len(trainer.checkpoint_callbacks) > 1:
        warn(f"{where}: several checkpoint callbacks; the first one's best is taken: {best}")
    return best


def search_folders(trainer: Trainer) -> list[Path]:
    """Return where checkpoints of this trainer can lie: the callbacks' own folders, then those of all versions."""
    callbacks = trainer.checkpoint_callbacks
    folders = [Path(f) for c in callbacks for f in c.folders()]
    if not folders or not all(c.folder_is_given for c in callbacks):
        folders += default_folders(trainer)
    return [f for f in dict.fromkeys(f.absolute() for f in folders) if f.is_dir()]


def default_folders(trainer: Trainer, version: int | str | None = None) -> list[Path]:
    """Return the folders that checkpoints go to, or may have gone to, where no callback has a folder of its own.

    Below the first logger's run folder, that of its version if its user chose one, else those of all versions;
    without a logger ``<default_root_dir>/checkpoints``.

    Args:
        trainer: The trainer.
        version: The version of the first logger; None for the one that its user chose.
    """
    if not trainer.loggers:
        return [Path(trainer.default_root_dir, "checkpoints")]
    logger = trainer.loggers[0]
    root = fact(logger, "save_dir") or trainer.default_root_dir
    own = fact(logger, "root_dir")
    if own is None or os.path.abspath(own) == os.path.abspath(root):
        own = os.path.join(root, str(fact(logger, "name", "")))
    version = fact(logger, "given_version") if version is None else version
    if version is not None:
        return [Path(own, f"version_{version}" if isinstance(version, int) else str(version), "checkpoints")]
    return [*sorted(Path(own).glob("*/checkpoints")), Path(own, "checkpoints")]


def _hpc(run: Run) -> str:
    import re

    root = Path(run.trainer.default_root_dir)
    numbered = [(int(m[1]), p) for p in root.glob("hpc_ckpt_*") if (m := re.search(r"hpc_ckpt_(\d+)\.ckpt$", p.name))]
    if not numbered:
        raise CheckpointError(_missing(run, str(root / "hpc_ckpt_1.ckpt")))
    return str(max(numbered)[1])
