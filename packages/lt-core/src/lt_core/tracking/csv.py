"""CSV file of metrics: one row a step, one column a metric."""

from __future__ import annotations

import csv
import io
import os
import weakref
from argparse import Namespace
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

    NAME_METRICS_FILE = "metrics.csv"
    NAME_HPARAMS_FILE = "hparams.yaml"
    knows_all = True  # its file is written anew from the history
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
        self._opened = False
        self._count = 0
        self._taken_from: weakref.ref[Any] | None = None
        self._saves = False
        self._taken = -1  # the last record in the file or among the rows that wait
        self.hparams: dict[str, Any] = {}
        self._hparams_written = True

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_taken_from": None, "_taken": -1}

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
                self._set_aside()
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
        """Add the rows of records; where all come again from the first, the file is written anew.

        Args:
            records: What to write.
            unsure: Whether rows of theirs may be there.
        """
        with self.exclusive():
            last = None if self._taken_from is None else self._taken_from() or self  # weakly: it holds the run
            if last is not self._feed:  # another run's records have the same numbers
                self._taken, self._taken_from = -1, None if self._feed is None else weakref.ref(self._feed)
            if unsure:
                if self._taken < 0 and records and records[0].sequence == 0:
                    self.rewind(2**62, None)
                records = [record for record in records if record.sequence > self._taken]
            self._add([(record.values, record.step) for record in records])
            self._taken = records[-1].sequence if records else self._taken

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
            row = {self._prefixed(key): self._number(key, value) for key, value in metrics.items()}
            self._rows.append({"step": self._count if step is None else step, **row})
            self._count += 1
        if may_write and len(self._rows) >= self._every:
            try:
                self._write_rows()
            except Exception:  # the caller gets the error, and sends them again
                del self._rows[waiting:]
                self._count = number
                raise

    def _write_rows(self, path: Path | None = None) -> None:
        if not self._rows:
            return
        _ = self.experiment
        path = Path(self.metrics_file_path) if path is None else path
        if self._columns and not path.exists():
            self._rows, self._columns, self._taken = [], [], -1
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
            temporary = path.with_suffix(".csv.tmp")
            with open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(old)
            os.replace(temporary, path)
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

    def rewind(self, step: int, version: int | str | None) -> bool:
        """Go on in a version's folder; the history is sent again, so of the file only the user's own rows stay."""
        with self.exclusive():
            if version is not None:
                self._version = version
            self._rows, self._columns, self._opened, self._count, self._taken = [], [], True, 0, -1
            _ = self.experiment
            path = Path(self.metrics_file_path)
            if path.exists():
                epoch = self._prefixed("epoch")
                self._rows = [row for row in _read(path) if _is_own(row, step, epoch)]
                draft = path.with_suffix(".csv.rewound")
                draft.unlink(missing_ok=True)
                if self._rows:  # at no moment are they in no file
                    self._write_rows(draft)
                    os.replace(draft, path)
                else:
                    path.unlink()
        return True

    def replay_state(self) -> dict[str, Any]:
        """Return what finds this run again."""
        state = {"save_dir": self._save_dir, "name": self._name, "version": self.version}
        return {**state, "prefix": self._prefix}

    @classmethod
    def from_replay_state(cls, state: Mapping[str, Any]) -> CSVLogger:
        """Return a logger of the run that `replay_state` described."""
        made = cls(**state)
        made._opened = True  # the file there is its own
        return made


def _is_own(row: Mapping[str, str], step: int, epoch: str) -> bool:
    """Return whether a row is of the user's own ``log_metrics``, up to a step: the history names the epoch."""
    number = row.get("step", "")
    return epoch not in row and number.isdigit() and int(number) <= step + 1  # after step s, global_step is s + 1


def _read(path: Path) -> list[dict[str, str]]:
    """Return a file's rows without their empty fields."""
    with open(path, newline="", encoding="utf-8", errors="backslashreplace") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
