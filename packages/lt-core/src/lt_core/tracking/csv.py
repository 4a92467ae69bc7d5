"""CSV file of metrics: one row a step, one column a metric."""

from __future__ import annotations

import csv
import io
import os
from argparse import Namespace
from bisect import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from lt_core.notices import warn
from lt_interface import ConfigError, Problem, Record
from lt_interface.hyperparameters import plain_dict
from lt_interface.versions import VersionedLogger, files_are_gone, replace_text, unless_silent

__all__ = ["CSVLogger"]


class CSVLogger(VersionedLogger):
    """Logger that writes ``<save_dir>/<name>/version_N/metrics.csv`` and ``hparams.yaml``.

    Args:
        save_dir: The folder of all experiments.
        name: The experiment; an empty name or None leaves out its folder.
        version: A number or a name; None takes the next free number when the run starts.
        prefix: Put before each metric's name, with a ``-``.
        flush_logs_every_n_steps: After how many rows the file is written.
        delivery: ``"sync"`` to write from the training loop itself, ``"async"`` from a thread.
    """

    #: The file of metrics in the run's folder.
    NAME_METRICS_FILE = "metrics.csv"
    #: The file of hyper-parameters in the run's folder.
    NAME_HPARAMS_FILE = "hparams.yaml"
    _metric_fix = "Keep anything else in a file of its own."

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
        delivery: str | None = None,
    ) -> None:
        if delivery not in (None, "sync", "async"):
            rule = 'it must be "sync" or "async"'
            raise ConfigError(Problem(f"CSVLogger(delivery={delivery!r})", rule, fix="Leave it out for a thread."))
        every = flush_logs_every_n_steps
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            where = f"CSVLogger(flush_logs_every_n_steps={every!r})"
            raise ConfigError(Problem(where, "it must be a whole number from 1 on"))
        super().__init__(save_dir, name, version, prefix, delivery)
        self._every = every
        self._rows: list[dict[str, Any]] = []
        self._columns: list[str] = []
        self._opened = self._saves = False
        self._goes_on = False  # whether the file that is there is this run's own
        self._count = 0
        self.hparams: dict[str, Any] = {}
        self._hparams_written = True

    def _claim(self) -> int:
        self._opened = True  # nobody wrote in a folder that was made just now
        return super()._claim()

    def _started(self) -> Any:
        """Return the logger itself, its folder made; an older run's metrics in it get another name.

        Raises:
            ConfigError: If nothing can be written there.
        """
        try:
            os.makedirs(self.log_dir, exist_ok=True)
            if not self._opened:
                self._opened = True
                if not self._goes_on:
                    self._set_aside()
                elif os.path.exists(self.metrics_file_path):
                    self._columns = _header(Path(self.metrics_file_path))
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def _set_aside(self) -> None:
        """Rename the file of an earlier run, so that two runs do not mix and none is lost."""
        path = Path(self.metrics_file_path)
        if not path.exists():
            return
        free = next(p for n in count(1) if not (p := path.with_name(f"{path.stem}-{n}{path.suffix}")).exists())
        path.rename(free)
        warn(f"CSVLogger: version {self.version!r} holds metrics of an earlier run; they are now in {free}.")

    @property
    def metrics_file_path(self) -> str:
        """Return the path of the CSV file."""
        return os.path.join(self.log_dir, self.NAME_METRICS_FILE)

    @unless_silent
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace | Any, *args: Any, **kwargs: Any) -> None:
        """Remember hyper-parameters; ``save`` writes them."""
        with self.exclusive():
            self.hparams.update(plain_dict(params or {}))
            self._hparams_written = not self.hparams

    @unless_silent
    def log_records(self, records: Sequence[Record], unsure: bool = False) -> None:
        """Add the rows of records.

        Args:
            records: What to write.
            unsure: Whether the first of them may be there: the end of the file shows how many.
        """
        with self.exclusive():
            if unsure:
                records = records[self._known([self._row(record.values, record.step) for record in records]) :]
            self._add([(record.values, record.step) for record in records])

    def _known(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Return how many rows, from the first on, were the last to be written; the user's own may lie between them."""
        _ = self.experiment
        path, epoch, wanted = Path(self.metrics_file_path), self._prefixed("epoch"), [_text(row) for row in rows]
        there = [*(_read(path) if path.exists() else []), *map(_text, self._rows)]

        def ends_with(left: int) -> bool:
            for row in reversed(there):
                if row == wanted[left - 1]:
                    left -= 1
                    if not left:
                        return True
                elif epoch in row:
                    return False
            return False

        return next((count for count in range(len(wanted), 0, -1) if ends_with(count)), 0)

    @unless_silent
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row; during a run it is written with the records that follow.

        Raises:
            MisconfigurationException: If a value is no number.
        """
        with self.exclusive():  # users log here while the history comes from a thread
            self._add([(metrics, step)], may_write=self._feed is None)
            if self._feed is None or self._saves:
                return
            self._saves = True
        self.later(self._save_own, "")

    def _save_own(self) -> None:
        self._saves = False
        self.save()

    def _number(self, name: str, value: Any) -> float:
        return value if isinstance(value, (int, float)) else super()._number(name, value)  # an int stays one

    def _add(self, rows: Sequence[tuple[Mapping[str, Any], int | None]], may_write: bool = True) -> None:
        """Add rows and write them when enough are due; after an error none of them is held."""
        waiting, number = len(self._rows), self._count
        for metrics, step in rows:
            self._rows.append(self._row(metrics, step))
            self._count += 1
        if may_write and len(self._rows) >= self._every:
            try:
                self._write_rows()
            except Exception:  # the caller gets the error, and sends them again
                del self._rows[waiting:]
                self._count = number
                raise

    def _row(self, metrics: Mapping[str, Any], step: int | None) -> dict[str, Any]:
        values = {self._prefixed(key): self._number(key, value) for key, value in metrics.items()}
        return {"step": self._count if step is None else step, **values}

    def _write_rows(self) -> None:
        if not self._rows:
            return
        _ = self.experiment
        path = Path(self.metrics_file_path)
        if self._columns and not path.exists():
            self._rows, self._columns = [], []
            raise files_are_gone(path)  # what was in it has to come again
        # In the order of their first row, so that the file does not depend on when it was written.
        names = dict.fromkeys(k for row in self._rows for k in sorted(row))
        ordered = dict.fromkeys(["epoch", "step", *names])
        if new := [k for k in ordered if k in names and k not in self._columns]:
            self._widen(path, new)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        size = path.stat().st_size if path.exists() else 0
        if not size:
            writer.writeheader()
        writer.writerows(self._rows)
        try:
            with open(path, "a", newline="", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text.getvalue())
        except OSError:
            if path.exists():
                os.truncate(path, size)  # no half a row
            raise
        self._rows = []

    def _widen(self, path: Path, new: list[str]) -> None:
        """Add columns, and write what is there again under the wider header, atomically."""
        old = _read(path) if path.exists() else []
        columns = [*self._columns, *new]
        if old:
            self._write_file(path, columns, old)
        else:
            path.unlink(missing_ok=True)
        self._columns = columns  # only now: on a full disk the file keeps its narrower header

    @unless_silent
    def save(self) -> None:
        """Write rows and hyper-parameters."""
        with self.exclusive():
            self._write_rows()
            if self._hparams_written:
                return
            import yaml

            _ = self.experiment
            text = yaml.safe_dump(plain_dict(self.hparams), sort_keys=False, allow_unicode=True)
            replace_text(os.path.join(self.log_dir, self.NAME_HPARAMS_FILE), text)
            self._hparams_written = True

    def join(self, version: int | str) -> None:
        """Go on in a version's file."""
        with self.exclusive():
            if version != self._version or not self._opened:
                self._version, self._goes_on, self._opened = version, True, False
                self._columns, self._count = [], 0

    def forget(self, records: Sequence[Record], step: int | None) -> None:
        """Take the rows of records out of the file, and between them the user's own of later steps.

        Args:
            records: The records.
            step: The step from which the run is resumed; None leaves the user's own rows.

        Raises:
            FileNotFoundError: If the file is gone; its attribute ``lost_all`` is True.
        """
        with self.exclusive():
            self._write_rows()
            _ = self.experiment
            path = Path(self.metrics_file_path)
            if not path.exists():
                self._columns = []
                raise files_are_gone(path)
            if not records:
                return
            rows = _read(path)
            stays = [True] * len(rows)
            lost = Counter(_key(_text(self._row(record.values, record.step))) for record in records)
            for place in reversed(range(len(rows))):
                if lost[key := _key(rows[place])]:
                    lost[key], stays[place] = lost[key] - 1, False
            if step is not None:
                self._forget_own(rows, stays, step)
            self._replace(path, [row for row, stay in zip(rows, stays, strict=True) if stay])

    def _forget_own(self, rows: list[dict[str, str]], stays: list[bool], step: int) -> None:
        """Mark the user's own rows of later steps beside rows that go, or at the file's end behind this run's last."""
        epoch = self._prefixed("epoch")  # the history names it
        history = [place for place, row in enumerate(rows) if epoch in row or not stays[place]]
        gone = {place for place in history if not stays[place]}
        last = history[-1] if history else -1
        if last < 0 or ((number := rows[last].get("step", "")).isdigit() and int(number) <= step):
            gone.add(len(rows))
        for place, row in enumerate(rows):
            number, after = row.get("step", ""), bisect(history, place)
            beside = {*history[max(after - 1, 0) : after + 1], *([len(rows)] if after == len(history) else [])}
            if epoch not in row and number.isdigit() and int(number) > step and beside & gone:
                stays[place] = False

    def _replace(self, path: Path, rows: list[dict[str, str]]) -> None:
        """Write a file anew, in one step, with the columns that rows have."""
        names = dict.fromkeys(key for row in rows for key in sorted(row))
        columns = [key for key in dict.fromkeys(["epoch", "step", *names]) if key in names]
        if columns:
            self._write_file(path, columns, rows)
        else:
            path.unlink()
        self._columns = columns

    @staticmethod
    def _write_file(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        replace_text(path, text.getvalue())

    def replay_state(self) -> dict[str, Any]:
        """Return what finds this run again."""
        state = {"save_dir": self._save_dir, "name": self._name, "version": self.version}
        return {**state, "prefix": self._prefix}

    @classmethod
    def from_replay_state(cls, state: Mapping[str, Any]) -> CSVLogger:
        """Return a logger of the run that `replay_state` described."""
        made = cls(**state)
        made._goes_on = True
        return made


def _read(path: Path) -> list[dict[str, str]]:
    """Return a file's rows without their empty fields."""
    with open(path, newline="", encoding="utf-8", errors="backslashreplace") as file:
        return [{key: value for key, value in row.items() if key and value} for row in csv.DictReader(file)]


def _header(path: Path) -> list[str]:
    with open(path, newline="", encoding="utf-8", errors="backslashreplace") as file:
        return next(csv.reader(file), [])


def _text(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a row as it is read from the file."""
    return {key.encode("utf-8", "backslashreplace").decode(): str(value) for key, value in row.items()}


def _key(row: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(row.items())
