"""Measure actions, report them and say what to do about them: what all profilers of this package share."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from threading import get_ident
from time import perf_counter
from typing import Any, ClassVar

import torch

from lt_core.notices import say, warn
from lt_core.profilers.tree import Action
from lt_core.profilers.verdict import Verdict, judge
from lt_interface import is_rank_zero
from lt_interface.errors import raise_problems
from lt_interface.paths import local_path, path_problem

__all__ = ["MeasuringProfiler", "PassThroughProfiler", "Profiler"]


class _Span:
    """Context that covers one action with a profiler's start and stop."""

    __slots__ = ("action", "profiler")

    def __init__(self, profiler: Any, action: str) -> None:
        self.profiler, self.action = profiler, action

    def __enter__(self) -> str:
        self.profiler.start(self.action)
        return self.action

    def __exit__(self, *error: object) -> None:
        self.profiler.stop(self.action)


class PassThroughProfiler:
    """Profiler that measures nothing: the loop leaves it out, so that it costs nothing.

    One of your own is a subclass of `Profiler`, or of this with ``passes_through = False``. The actions are
    ``[Callback]<state key>.<hook>``; ``[LightningModule]<class>.<hook>`` and ``[LightningDataModule]<class>.<hook>``;
    ``[Strategy]<class>.`` with ``training_step`` and the other steps, ``backward``, ``optimizer_step`` and
    ``batch_to_device``; ``[_TrainingEpochLoop].train_dataloader_next``, ``[_EvaluationLoop].val_next`` and alike;
    ``[Trainer]`` with ``setup``, ``log`` and ``flush_loggers``; ``run_training_epoch``, ``run_training_batch``,
    ``run_validation``, ``setup_train_dataloader`` and ``save_checkpoint``.

    Example:
        >>> from lt_core import Trainer
        >>> from lt_core.demos import BoringModel
        >>> class Counter(PassThroughProfiler):
        ...     passes_through = False
        ...     counts = {}
        ...     def start(self, action_name):
        ...         self.counts[action_name] = self.counts.get(action_name, 0) + 1
        >>> quiet = dict(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
        >>> counter = Counter()
        >>> trainer = Trainer(accelerator="cpu", max_steps=3, logger=False, profiler=counter, **quiet)
        >>> trainer.fit(BoringModel())
        >>> counter.counts["run_training_batch"]
        3
    """

    passes_through = True

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Prepare for a stage."""

    def start(self, action_name: str) -> None:
        """Note that an action begins."""

    def stop(self, action_name: str) -> None:
        """Note that an action ends."""

    def profile(self, action_name: str) -> Any:
        """Return a context that covers one action with start and stop, an exception included."""
        return _Span(self, action_name)

    def summary(self) -> str:
        """Return the report."""
        return ""

    def describe(self) -> None:
        """Print the report, if there is one."""
        text = self.summary()
        if text:
            say(text)

    def teardown(self, stage: str | None) -> None:
        """Free what setup took."""


class Profiler(PassThroughProfiler):
    """Base of profilers of your own: override ``start``, ``stop`` and ``summary``.

    Args:
        dirpath: A folder, for what you write.
        filename: A file's name, for what you write.

    Example:
        >>> class Names(Profiler):
        ...     names = set()
        ...     def start(self, action_name):
        ...         self.names.add(action_name)
        >>> with Names().profile("mine"):
        ...     Names.names
        {'mine'}
    """

    passes_through = False

    def __init__(self, dirpath: str | os.PathLike[str] | None = None, filename: str | None = None) -> None:
        self.dirpath = None if dirpath is None else os.fspath(dirpath)
        self.filename = filename


class MeasuringProfiler(Profiler):
    """Base of profilers that measure, report and judge.

    The report is printed on rank 0, or with a ``filename`` or a ``dirpath`` appended on each rank to a file
    ``<stage>-<filename>-<rank>.txt`` of its own; the verdict then stands beside it in a file ``....json``.

    Args:
        dirpath: The folder for files; None means the trainer's ``default_root_dir``.
        filename: The middle of the files' names; None means that the report is printed, or with a ``dirpath`` the
            profiler's own word.

    Attributes:
        recorded_durations: Seconds of each action's calls since the run began, in their order.

    Raises:
        ConfigError: If folder or name cannot be those of a file of this machine.
    """

    _word = "profile"
    _measured: ClassVar[set[str]] = {"recorded_durations", "_root", "_now"}  # what does not travel to other processes

    def __init__(self, dirpath: str | os.PathLike[str] | None = None, filename: str | None = None) -> None:
        where = type(self).__name__
        self.dirpath = None if dirpath is None else local_path(f"{where}(dirpath={dirpath!r})", dirpath)
        self.filename = self._word if filename is None and dirpath is not None else filename
        problem = path_problem(f"{where}(filename={filename!r})", f"predict-{filename}-0000.json")
        raise_problems([problem] if problem is not None else [])
        self._stage, self._rank, self._folder = "", 0, self.dirpath
        self._begin()

    def _begin(self) -> None:
        self.recorded_durations: dict[str, Any] = {}
        self._root = self._now = Action("", None, self.recorded_durations)
        self._facts: Mapping[str, Any] = {}
        self._thread: int | None = get_ident()
        self._seconds = 0.0  # until the run is over
        self.start_time = perf_counter()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in self._measured}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Begin to measure a call of the trainer, and forget the one before."""
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._stage, self._rank = stage, torch.distributed.get_rank() if several else local_rank or 0
        self._folder = self.dirpath or log_dir
        self._begin()

    def take_facts(self, facts: Mapping[str, Any]) -> None:
        """Take what is known of the run, for the verdict."""
        self._facts = dict(facts)

    @property
    def current_actions(self) -> dict[str, float]:
        """Return the actions that are open, with the time at which each began."""
        return {action.name: action.began for action in self._now.above() if action.open}

    def start(self, action_name: str) -> None:
        """Note that an action begins, inside those that are open; actions of other threads are left out."""
        if get_ident() != self._thread:
            return
        now = self._now.inside.get(action_name)
        if now is None:
            now = self._now.inside[action_name] = Action(action_name, self._now, self.recorded_durations)
        now.open = True
        self._now = now
        now.began = perf_counter()

    def stop(self, action_name: str) -> None:
        """Note that an action ends.

        Raises:
            ValueError: If it is not open.
        """
        ended = perf_counter()
        if get_ident() != self._thread:
            return
        now: Action | None = self._now
        while now is not None and now.name != action_name:
            now = now.outer
        if now is None or not now.open:
            raise ValueError(f"{type(self).__name__}.stop: the action must have begun. Got {action_name!r}.")
        seconds = ended - now.began
        now.seconds += seconds
        now.durations.append(seconds)
        now.open = False
        while not self._now.open and self._now.outer is not None:  # one that overlaps another ends after it
            self._now = self._now.outer

    @property
    def measures(self) -> bool:
        """Return whether the caller's actions are measured: those of the loop's thread, until the run is over."""
        return get_ident() == self._thread

    def teardown(self, stage: str | None) -> None:
        """End measuring, until the next setup."""
        self._thread = None

    # -- the report --

    @property
    def elapsed(self) -> float:
        """Return the seconds from the beginning of the run to its end, or up to now while it runs."""
        return self._seconds or perf_counter() - self.start_time

    def verdict(self) -> Verdict:
        """Return what the run waited for, and what to do about it: a dict of plain values whose text is the report's.

        Example:
            >>> from lt_core.profilers import SimpleProfiler
            >>> print(SimpleProfiler().verdict()["bottleneck"])
            nothing
        """
        return judge(self._root, self.elapsed, self._stage, self._rank, self._facts)

    def report(self) -> str:
        """Return the profiler's own table of what it measured."""
        return ""

    def summary(self) -> str:
        """Return the report and the verdict; nothing where nothing was measured."""
        if not self.recorded_durations:
            return ""
        return f"{self.report().rstrip()}\n\n{self.verdict()}\n"

    def describe(self) -> None:
        """Print the report and the verdict on rank 0, or write them to files on each rank."""
        self._seconds = perf_counter() - self.start_time
        text = self.summary()
        if not text:
            return
        if self.filename is None:
            if is_rank_zero():
                say(text)
            return
        try:
            with open(self.path(".txt"), "a", encoding="utf-8") as file:
                file.write(text)
            with open(self.path(".json"), "w", encoding="utf-8") as file:
                json.dump(self.verdict(), file, indent=2)
        except OSError as error:  # a report is not worth a run
            warn(f"{type(self).__name__}: the report was not written to {self._folder}: {error}")
            say(text)

    def path(self, extension: str) -> str:
        """Return the path of one of this rank's files, its folder made.

        Args:
            extension: The end of the file's name.
        """
        folder = self._folder or os.getcwd()
        os.makedirs(folder, exist_ok=True)
        parts = (self._stage, self.filename, str(self._rank))
        return os.path.join(folder, "-".join(filter(None, parts)) + extension)
