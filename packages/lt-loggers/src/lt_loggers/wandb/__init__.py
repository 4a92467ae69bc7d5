"""Logger for Weights & Biases, online or offline."""

from __future__ import annotations

import os
import secrets
import string
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from lt_interface import ConfigError, MisconfigurationException, Problem, is_rank_zero
from lt_interface.hyperparameters import number, plain_dict
from lt_interface.versions import unless_silent
from lt_loggers.arguments import check_choice, check_numbers, check_paths, check_texts, missing
from lt_loggers.wandb.checkpoints import WandbCheckpoints
from lt_loggers.wandb.run import FLUSH_INTERVAL, OpenRun, active_run, close_idle_runs, is_open, open_run, start_run
from lt_loggers.wandb.transaction_log import MARK, KnownRows, mark_of
from lt_loggers.wandb.watch import WandbWatching

if TYPE_CHECKING:
    from lt_interface import Record

__all__ = ["WandbLogger"]

_STEP = "trainer/global_step"
_RESERVED = frozenset({"", "_step", "_timestamp", "_runtime", "_wandb", MARK, _STEP})
_EXIT_CODES = {"failed": 1, "interrupted": 255}
# Keyword arguments of wandb.init that a replay in another process needs, where they are plain values.
_REPLAYED = ("entity", "group", "job_type", "tags", "notes", "mode")


class WandbLogger(WandbWatching, WandbCheckpoints):
    """Logger that writes metrics, media and checkpoints to a W&B run.

    The run stays open after ``fit``, so that ``test`` and the user's own calls go on in it; it is
    finished when the process ends, when the next logger of this process starts a run, and at once
    where training failed or was interrupted. Two loggers that are in use at once are two runs.

    W&B's own x-axis is never set: each row carries ``trainer/global_step``, and that, the epoch or
    ``<stage>/batch`` is the x-axis of a metric, as its values came. With wandb 0.31 or later, what ``save``
    has returned for is in the transaction log on this machine, also if both processes are killed then.
    Rows that were sent before are found there by number and not sent again.

    Args:
        name: The run's name on the server; None lets the server choose.
        save_dir: The folder below which everything of this machine lies.
        version: The same as ``id``.
        offline: Whether to keep the run on this machine, to send it later with ``wandb sync``.
        dir: Overrides ``save_dir``.
        id: The run's id; None takes ``WANDB_RUN_ID``, an active run's, or a new one.
        anonymous: As of ``wandb.init``.
        project: The project; None takes ``WANDB_PROJECT`` or ``lightning_logs``.
        log_model: True keeps checkpoints with the run at its end, ``"all"`` as they are saved.
        experiment: A run that was started already; it is never finished here.
        prefix: Text before each metric's name, followed by ``-``.
        checkpoint_name: The artifact's name; None means ``model-<id>``.
        add_file_policy: ``"mutable"`` lets W&B copy a checkpoint, ``"immutable"`` does not.
        delivery: ``"sync"`` or ``"async"``; None for what the trainer's ``logger_delivery`` says.
        flush_timeout: How many seconds the end of a run, the start of one, or ``flush`` waits.
        per_rank: Whether each process has a run of its own, in one group.
        **kwargs: Given to ``wandb.init``, such as ``entity``, ``group``, ``tags``, ``notes``, ``config``.

    Raises:
        MissingPackageError: If wandb is not installed.
        MisconfigurationException: If an argument is out of range.
    """

    #: Whether it finds out itself what its tracker has: W&B acknowledges nothing, so all rows are asked for.
    knows_all = True
    _metric_got = "{name}={value!r} of type {kind}"
    _metric_fix = "Use log_image, log_text and the like, or `logger.experiment`, for anything else."

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | os.PathLike[str] = ".",
        version: str | None = None,
        offline: bool = False,
        dir: str | os.PathLike[str] | None = None,
        id: str | None = None,
        anonymous: bool | None = None,
        project: str | None = None,
        log_model: bool | str = False,
        experiment: Any = None,
        prefix: str = "",
        checkpoint_name: str | None = None,
        add_file_policy: Literal["mutable", "immutable"] = "mutable",
        *,
        delivery: str | None = None,
        flush_timeout: float = 30.0,
        per_rank: bool = False,
        **kwargs: Any,
    ) -> None:
        if find_spec("wandb") is None:
            raise missing("WandbLogger", "wandb")
        check_choice("WandbLogger", "log_model", log_model, (False, True, "all"))
        check_choice("WandbLogger", "add_file_policy", add_file_policy, ("mutable", "immutable"))
        check_choice("WandbLogger", "delivery", delivery, (None, "sync", "async"))
        check_choice("WandbLogger", "offline", offline, (False, True))
        check_texts("WandbLogger", id=id, project=project, checkpoint_name=checkpoint_name, mode=kwargs.get("mode"))
        check_paths("WandbLogger", save_dir=save_dir, dir=dir)
        check_numbers("WandbLogger", flush_timeout=flush_timeout)
        if experiment is not None and not hasattr(experiment, "id"):
            rule, fix = "it must be what wandb.init returned", "Leave it out for a new run."
            raise ConfigError(Problem(f"WandbLogger(experiment={experiment!r})", rule, fix=fix))
        super().__init__(save_dir if dir is None else dir, prefix, delivery, flush_timeout)
        self._display_name = None if name is None else str(name)
        self._id = id if id is not None else None if version is None else str(version)
        self._given_id = self._id if experiment is None else str(experiment.id)
        self._project, self._given, self._is_identified = project, experiment, False
        self._offline, self._anonymous, self._per_rank, self._kwargs = offline, anonymous, per_rank, kwargs
        self._log_model, self._checkpoint_name, self._add_file_policy = log_model, checkpoint_name, add_file_policy
        self._watches = []
        self._forget_run()

    def _forget_run(self) -> None:
        self._open: OpenRun | None = None
        self._known = KnownRows()
        self._axes: dict[str, str] = {}

    @property
    def name(self) -> str:
        """Return the project's name."""
        self._identify()
        return self._project or ""

    @property
    def given_version(self) -> str | None:
        """Return the run's id if it was given, here or in the environment."""
        return self._given_id or os.environ.get("WANDB_RUN_ID") or None

    @property
    def version(self) -> str:
        """Return the run's id; it is known without a server."""
        self._identify()
        return self._id or ""

    @property
    def root_dir(self) -> str:
        """Return the folder of this project's runs."""
        return os.path.join(self._save_dir, self.name)

    @property
    def log_dir(self) -> str:
        """Return this run's folder for checkpoints and the like."""
        return os.path.join(self.root_dir, self.version)

    def _identify(self) -> None:
        """Fix project and id at the first need: as given, of the run to join, of the environment, or new."""
        if self._is_identified:
            return
        with self.exclusive():
            found = self._given
            if os.environ.get("WANDB_SWEEP_ID"):  # its agent says which run this is
                self._id = os.environ.get("WANDB_RUN_ID") or self._id
                self._project = os.environ.get("WANDB_PROJECT") or self._project
            if found is None and self._id is None:
                found = active_run()
                if found is not None:
                    self.tell(
                        f"WandbLogger: a W&B run is active in this process, so this logger goes on in it ({found.id}). "
                        "Call wandb.finish() before for a run of its own.",
                    )
            if found is not None:
                self._given = found
                self._id, self._project = found.id, found.project
                self._offline = self._offline or bool(getattr(found, "offline", False))
            self._project = self._project or os.environ.get("WANDB_PROJECT") or "lightning_logs"
            alphabet = string.ascii_lowercase + string.digits
            base = self._id or os.environ.get("WANDB_RUN_ID") or "".join(secrets.choice(alphabet) for _ in range(8))
            self._id = base if found is not None else base + self._rank_suffix()
            self._is_identified = True

    def _is_silent(self) -> bool:
        return not (self._per_rank or is_rank_zero())

    def _rank_suffix(self) -> str:
        """Return what this process's id ends with where each has a run of its own; put the run into their group."""
        if not self._per_rank:
            return ""
        rank = _rank()
        if not self._kwargs.get("group"):
            group = self._id or next((os.environ[key] for key in _SHARED if os.environ.get(key)), None)
            if group is None and rank != "0":
                raise MisconfigurationException(
                    "WandbLogger(per_rank=True): the runs need one group, and nothing names it on all processes. "
                    "Give the same id=... or group=... everywhere."
                )
            self._kwargs = {**self._kwargs, **({"group": group} if group else {})}
        self._kwargs.setdefault("job_type", f"rank-{rank}")
        return "" if rank == "0" or self._id is None else f"-rank-{rank}"

    def _started(self) -> Any:
        """Return the ``wandb.Run``.

        Raises:
            MisconfigurationException: If there is no API key and the run is not offline.
            ConnectionError: If W&B's own process does not work.
        """
        return self._opened().run

    def _opened(self) -> OpenRun:
        with self.exclusive():
            if self._open is None or not self._open.is_open:
                self._open = self._begin()
            self._open.finalized = False
            return self._open

    def _begin(self) -> OpenRun:
        """Take the run that this process has open under the id, or start it."""
        self._identify()
        opened = open_run(self._id)
        if opened is None:
            close_idle_runs()
            opened = OpenRun(self._given, False) if is_open(self._given) else self._start()
        opened.users.add(self)
        self._axes.clear()
        opened.run.define_metric(_STEP)
        opened.run.define_metric("*", step_metric=_STEP, step_sync=True)
        return opened

    def _start(self) -> OpenRun:
        try:
            os.makedirs(self._save_dir, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        options: dict[str, Any] = {"name": self._display_name, "dir": self._save_dir, "resume": "allow"}
        if not os.environ.get("WANDB_SWEEP_ID"):  # else the agent names the run
            options |= {"project": self._project, "id": self._id}
        if self._anonymous is not None:
            options["anonymous"] = self._anonymous
        if self._offline:
            options["mode"] = "offline"
        run, trouble = start_run({**options, **self._kwargs}, self.flush_timeout, bool(self._log_model))
        opened = OpenRun(run, True)
        self._id = run.id
        if trouble:
            self._offline = True
            self.tell(
                f"WandbLogger: the W&B server could not be reached, so this run is kept on this machine. {trouble} "
                f"Send it later with: wandb sync {os.path.dirname(run.settings.sync_file)}",
            )
        return opened

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write one row.

        Args:
            metrics: Numbers or single-element tensors by name; a dict of them gives names with ``/``.
            step: The step; None takes the run's, and none outside of a run.

        Raises:
            MisconfigurationException: If a value is no number.
        """
        row = self._numbers(metrics)
        if row:
            at = self.step_or_current(step)
            self.later(lambda: self._send_call(row, at), "metrics that were logged directly")

    @unless_silent
    def log_records(self, records: Sequence[Record], unsure: bool = False) -> None:
        """Write a row for each record.

        Args:
            records: The records, in order.
            unsure: Whether rows may be there already; then only those that are not are written.

        Raises:
            ConnectionError: If W&B's own process has died, or the server does not say what it has.
        """
        with self.exclusive():
            opened = self._opened()
            known: Any = frozenset()
            if unsure:
                known = self._known.marks(opened, self._save_dir, self._is_offline(), self.flush_timeout)
            for record in records:
                if mark_of(record.sequence, record.time) in known:
                    continue
                names = {key: self._name_of(key) for key in record.values}
                row: dict[str, Any] = {names[key]: number(value) for key, value in record.values.items()}
                if record.axis == "batch":
                    axis = f"{record.stage}/batch"
                    self._set_axes({axis: None}, None)
                    self._set_axes({name: row[name] for name in row if name != names.get("epoch")}, axis)
                    row[axis] = record.step
                else:
                    if record.axis == "epoch" and "epoch" in names:
                        self._set_axes(row, names["epoch"])
                    row[_STEP] = record.step
                row["_timestamp"] = record.time
                opened.send(row, record.sequence)

    @unless_silent
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Write hyper-parameters to the run's configuration; nested ones stay nested.

        Args:
            params: A dict, namespace or dataclass, of any depth and with any values.
            *args: Ignored; other loggers take more.
            **kwargs: Ignored, too.
        """
        given = plain_dict(params)
        if given:
            self.later(lambda: self._opened().configure(given), "hyper-parameters")

    def save(self) -> None:
        """Return when the transaction log has all rows that were sent.

        Raises:
            TimeoutError: If W&B's own process has not written them after ``flush_timeout`` seconds.
        """
        with self.exclusive():
            if self._open is not None:
                self._open.wait(self.flush_timeout)

    def finalize(self, status: str) -> None:
        """Write everything; finish the run where training did not succeed.

        Args:
            status: ``"success"``, ``"failed"`` or ``"interrupted"``.
        """
        with self.exclusive():
            if self._open is None or not self._open.is_open:
                return
            try:
                self._send_watched()
                self._log_final_checkpoints()
                self.save()
            except OSError as error:
                self.tell(f"WandbLogger: the run's end may be incomplete. {error}")
            self._open.finalized = True
            if status in _EXIT_CODES or not self._open.is_prompt:  # else all is on the disk without its end
                self._open.close(_EXIT_CODES.get(status, 0))

    def join(self, version: int | str) -> None:
        """Go on in the run with the id ``version``."""
        with self.exclusive():
            if self._given is None or self._given.id != str(version):
                if self._open is not None and self._id != str(version):
                    self._open.close(0)
                self._given = None
                self._forget_run()
                self._id, self._is_identified = str(version), False
                self._identify()

    def replay_state(self) -> dict[str, Any]:
        """Return plain JSON values from which this run is found again; no secret is among them."""
        _ = self.version
        state: dict[str, Any] = {
            "id": self._id,
            "project": self._project,
            "name": self._display_name,
            "save_dir": self._save_dir,
            "offline": self._is_offline(),
            "prefix": self._prefix,
            "flush_timeout": self.flush_timeout,
        }
        for key in _REPLAYED:
            value = self._kwargs.get(key)
            if value is not None:
                state[key] = list(value) if isinstance(value, (list, tuple)) else str(value)
        entity = None if self._open is None else getattr(self._open.run, "entity", None)
        if entity and "entity" not in state:
            state["entity"] = entity
        return state

    @classmethod
    def from_replay_state(cls, state: Mapping[str, Any]) -> WandbLogger:
        """Return a logger of the run that `replay_state` described."""
        return cls(**state)

    def _is_offline(self) -> bool:
        if self._open is not None and self._open.is_open:
            return bool(getattr(self._open.run, "offline", False))
        mode = self._kwargs.get("mode") or os.environ.get("WANDB_MODE")
        return self._offline or mode in ("offline", "dryrun")

    def _name_of(self, key: str) -> str:
        """Return a metric's name in W&B: with the prefix, and never one that W&B takes for itself."""
        name = self._prefixed(key)
        if name.lstrip("~") not in _RESERVED:
            return name
        renamed = f"it is logged as {'~' + name!r}, and each other name of that kind alike."
        self._warn_once("names", f"WandbLogger: W&B keeps the name {name!r} to itself; {renamed}")
        return f"~{name}"

    def _numbers(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        row: dict[str, float] = {}
        for key, value in metrics.items():
            if isinstance(value, Mapping):
                row.update(self._numbers({f"{key}/{inner}": entry for inner, entry in value.items()}))
            else:
                row[self._name_of(str(key))] = self._number(str(key), value)
        return row

    def _set_axes(self, row: Mapping[str, Any], axis: str | None) -> None:
        """Give each metric its x-axis once, unless the user gave it one."""
        opened = self._open
        fresh = [name for name in row if name != axis and name not in self._axes and "*" not in name]
        if opened is None or not fresh:
            return
        theirs: dict[str, str] = {}
        if opened.log is not None:
            if not self._axes:
                time.sleep(2 * FLUSH_INTERVAL)  # what the user defined before is in the log then
            opened.log.refresh()
            theirs = opened.log.step_metrics
        groups = tuple(group[:-1] for group in theirs if group.endswith("*") and group != "*")
        for name in fresh:
            self._axes[name] = axis or ""
            if name not in theirs and not name.startswith(groups):
                escaped = name.replace("\\", "\\\\").replace(".", "\\.")
                opened.guarded(partial(opened.run.define_metric, escaped, step_metric=axis, step_sync=False))

    @unless_silent
    def _send_call(self, row: Mapping[str, Any], step: int | None) -> None:
        """Write one row of a direct call."""
        with self.exclusive():
            opened = self._opened()
            opened.send({**row, **({} if step is None else {_STEP: int(step)})}, opened.next_call())

    def __getstate__(self) -> dict[str, Any]:
        _ = self.version  # a copy in another process is of the same run
        return {**super().__getstate__(), "_given": None, "_open": None, "_known": KnownRows(), "_watches": []}


# What torchrun and Slurm set to the same value on all processes of a run.
_SHARED = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")


def _rank() -> str:
    return os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
