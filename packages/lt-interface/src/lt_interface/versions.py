"""Bases of loggers: their folders ``version_0``, ``version_1`` and so on, their names, their one rank guard."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from lt_interface.errors import ConfigError, MisconfigurationException, Problem, raise_problems
from lt_interface.hyperparameters import number
from lt_interface.logger import Logger
from lt_interface.paths import local_path, path_problem
from lt_interface.ranks import DummyExperiment, is_rank_zero

__all__ = ["NamedLogger", "VersionedLogger", "claim_version", "files_are_gone", "last_version", "replace_text"]
__all__ += ["unless_silent"]

P = ParamSpec("P")


def claim_version(root: Path) -> int:
    """Make the next free folder ``version_N`` below ``root``; two processes never get the same.

    Args:
        root: The folder of all versions; made if it is not there.

    Returns:
        The number N.

    Raises:
        OSError: If nothing can be made there.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     claim_version(Path(root)), claim_version(Path(root)), last_version(Path(root))
        (0, 1, 1)
    """
    root.mkdir(parents=True, exist_ok=True)
    number = last_version(root) + 1
    while True:
        try:
            (root / f"version_{number}").mkdir()
            return number
        except FileExistsError:
            number += 1


def last_version(root: Path) -> int:
    """Return the highest number that was claimed below ``root``; -1 if there is none.

    Args:
        root: The folder of all versions, which need not be there.

    Example:
        >>> last_version(Path("no such folder"))
        -1
    """
    return max((int(p.name[8:]) for p in root.glob("version_*") if p.name[8:].isdecimal()), default=-1)


def replace_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in one step: a reader sees the old text or the new, never half of it.

    Args:
        path: The file; its folder exists.
        text: All that it will hold; what UTF-8 cannot hold is escaped.

    Raises:
        OSError: If it cannot be written; the old file is kept.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     replace_text(Path(folder, "a.txt"), "new")
        ...     Path(folder, "a.txt").read_text()
        'new'
    """
    folder, name = os.path.split(path)
    draft = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        with open(draft, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
        os.replace(draft, path)
    except OSError:
        with suppress(OSError):
            os.unlink(draft)
        raise


def files_are_gone(path: str | os.PathLike[str]) -> FileNotFoundError:
    """Return the error of a logger whose file somebody removed; the core then sends all records again.

    Args:
        path: The file that is gone.

    Example:
        >>> files_are_gone("metrics.csv").lost_all
        True
    """
    error = FileNotFoundError(f"{os.fspath(path)} is gone; all of it is written again")
    error.lost_all = True  # type: ignore[attr-defined]
    return error


def unless_silent(method: Callable[P, None]) -> Callable[P, None]:
    """Make a method of a `NamedLogger` do nothing on the processes where it is silent.

    Args:
        method: The method, in its class.

    Returns:
        The guarded method.

    Example:
        >>> from unittest.mock import patch
        >>> class Printer(NamedLogger):
        ...     @unless_silent
        ...     def log_metrics(self, metrics, step=None):
        ...         print(metrics)
        >>> with patch.dict("os.environ", {"RANK": "2"}):
        ...     Printer(".", "", None).log_metrics({"loss": 0.5})
    """

    @wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        logger: Any = args[0]
        if not logger._is_silent():
            method(*args, **kwargs)

    return guarded


class NamedLogger(Logger):
    """Logger that is silent on all processes but the first, and gives metrics names with a prefix.

    Args:
        save_dir: The folder below which everything of this machine lies; a relative one is that of this moment.
        prefix: Text before each metric's name, followed by ``-``.
        delivery: ``"sync"``, ``"async"`` or None, as of `Logger`.
        flush_timeout: How many seconds the end of a run, or ``flush``, waits without progress.

    Example:
        >>> class Printer(NamedLogger):
        ...     def log_metrics(self, metrics, step=None):
        ...         for name, value in metrics.items():
        ...             print(self._prefixed(name), self._number(name, value))
        >>> Printer(".", "big", None).log_metrics({"loss": 1})
        big-loss 1.0
    """

    # The words of the error for a value that is none: the rule, the value, and where else it may go.
    _metric_rule = "a metric must be a number or a single-element tensor"
    _metric_got = "{value!r} of type {kind}"
    _metric_fix = ""

    def __init__(
        self, save_dir: str | os.PathLike[str], prefix: str, delivery: str | None, flush_timeout: float = 30.0
    ) -> None:
        super().__init__()
        self.delivery, self.flush_timeout = delivery, flush_timeout
        self._save_dir = local_path(f"{type(self).__name__}(save_dir={save_dir!r})", save_dir)
        self._prefix = prefix
        self._warned: set[str] = set()

    @property
    def save_dir(self) -> str:
        """Return the folder below which everything of this machine lies."""
        return self._save_dir

    @property
    def experiment(self) -> Any:
        """Return the tracker's own object, started at the first use; where the logger is silent, one that does nothing.

        Raises:
            ConfigError: If it cannot be started with these arguments.
        """
        return DummyExperiment() if self._is_silent() else self._started()

    def _started(self) -> Any:
        raise NotImplementedError

    def _is_silent(self) -> bool:
        """Return whether this process writes nothing."""
        return not is_rank_zero()

    def _prefixed(self, key: str) -> str:
        return f"{self._prefix}-{key}" if self._prefix else key

    def _number(self, name: str, value: Any) -> float:
        """Return a metric's value as a float.

        Raises:
            MisconfigurationException: If it is no number.
        """
        try:
            return number(value)
        except TypeError:
            where = f"{type(self).__name__}.log_metrics({name!r})"
            got = self._metric_got.format(name=name, value=value, kind=type(value).__name__)
            raise MisconfigurationException(Problem(where, self._metric_rule, got, self._metric_fix)) from None

    def _warn_once(self, topic: str, message: str) -> None:
        """Warn, unless there was a warning about this topic."""
        if topic not in self._warned:
            self._warned.add(topic)
            self.tell(message)

    def _unwritable(self, error: OSError) -> ConfigError:
        where = f"{type(self).__name__}(save_dir={self._save_dir!r})"
        return ConfigError(Problem(where, "its folder must be writable", str(error), "Give another save_dir."))


class VersionedLogger(NamedLogger):
    """Logger whose runs are the folders ``<save_dir>/<name>/version_N``.

    Args:
        save_dir: The folder of all experiments; a relative one is that of this moment.
        name: The experiment; an empty name or None leaves out its folder.
        version: A number or a folder's name; None takes the next free number at the first use.
        prefix: Text before each metric's name, followed by ``-``.
        delivery: ``"sync"``, ``"async"`` or None, as of `Logger`.
        flush_timeout: How many seconds the end of a run, or ``flush``, waits without progress.

    Example:
        >>> logger = VersionedLogger("logs", "digits", version=3, prefix="", delivery=None)
        >>> os.path.relpath(logger.log_dir).replace(os.sep, "/")
        'logs/digits/version_3'
        >>> logger.share_version(7)
        >>> logger.version
        3
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None,
        version: int | str | None,
        prefix: str,
        delivery: str | None,
        flush_timeout: float = 30.0,
    ) -> None:
        super().__init__(save_dir, prefix, delivery, flush_timeout)
        self._name, self._version, self._given_version = name or "", version, version
        given = {key: value for key, value in (("name", name), ("version", version)) if isinstance(value, str)}
        found = [path_problem(f"{type(self).__name__}({key}={value!r})", value) for key, value in given.items()]
        raise_problems([problem for problem in found if problem is not None])

    @property
    def name(self) -> str:
        """Return the experiment's name."""
        return self._name

    @property
    def version(self) -> int | str:
        """Return the run's number or folder name, claimed at the first use; where silent, the one claimed last.

        Raises:
            ConfigError: If nothing can be written below ``save_dir``.
        """
        if self._version is None:
            if self._is_silent():
                return max(last_version(Path(self.root_dir)), 0)
            with self.exclusive():
                if self._version is None:
                    self._version = self._claim()
        return self._version

    @property
    def given_version(self) -> int | str | None:
        """Return the run's number or folder name if it was given."""
        return self._given_version

    def _claim(self) -> int:
        try:
            return claim_version(Path(self.root_dir))
        except OSError as error:
            raise self._unwritable(error) from error

    def share_version(self, version: int | str) -> None:
        """Write into the version folder of another logger, unless a version was given or claimed.

        Args:
            version: The version of that logger.
        """
        if self._version is None:
            self._version = version

    @property
    def root_dir(self) -> str:
        """Return the folder of all versions of this experiment."""
        return os.path.join(self._save_dir, self._name) if self._name else self._save_dir

    @property
    def log_dir(self) -> str:
        """Return this run's folder."""
        version = self.version
        return os.path.join(self.root_dir, version if isinstance(version, str) else f"version_{version}")
