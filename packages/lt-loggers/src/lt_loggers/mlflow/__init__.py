"""Logger for an MLflow tracking server, a database or a folder."""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from lt_interface import ConfigError, MisconfigurationException, Problem, Record
from lt_interface.versions import unless_silent
from lt_loggers.arguments import check_choice, check_numbers, check_paths, check_texts, missing
from lt_loggers.mlflow.client import ask, default_uri, without_secret
from lt_loggers.mlflow.media import MLFlowMedia
from lt_loggers.mlflow.params import MLFlowParams
from lt_loggers.mlflow.run import FIRST_LOOK_SECONDS
from lt_loggers.mlflow.system import SystemMetrics

__all__ = ["MLFlowLogger"]

_STATUSES = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_METRICS = 1000  # in one request
_LARGEST = 1.7976931348623157e308  # what databases keep of an infinity


class MLFlowLogger(MLFlowParams, MLFlowMedia):
    """Logger that writes metrics, parameters, media and checkpoints to a run of MLflow.

    Only the client is used, never MLflow's active run. The run's own folder on this machine, for the journal and
    checkpoints, is ``<save_dir>/<experiment_name>/<run id>``.

    Args:
        experiment_name: The experiment; made if it is not there.
        run_name: The run's name; None lets MLflow choose.
        tracking_uri: ``http(s)://``, ``sqlite:///`` or ``file:``; None takes ``MLFLOW_TRACKING_URI``, else a database
            below ``save_dir`` (with the full mlflow), else that folder.
        tags: Tags of the run; ``mlflow.note.content`` is its description.
        save_dir: The folder for everything of this machine.
        log_model: True keeps checkpoints with the run at its end, ``"all"`` as they are saved.
        prefix: Text before each metric's name, followed by ``-``.
        artifact_location: Where a new experiment keeps artifacts; the server's choice if None.
        run_id: An earlier run to go on in.
        synchronous: True is the same as ``delivery="sync"``.
        nested_run_id: The run that this one belongs to.
        on_unreachable: ``"error"`` ends a run whose server does not answer at its start, ``"spool"`` lets it go on:
            all is sent when the server comes. None means an error for a new run, spooling for one that goes on.
        delivery: ``"sync"`` or ``"async"``; None for what the trainer's ``logger_delivery`` says.
        flush_timeout: How many seconds the end of a run, or ``flush``, waits without progress.
        log_system_metrics: Whether CPU, memory, disk, network and GPUs are logged every ten seconds; needs psutil.

    Raises:
        MissingPackageError: If neither mlflow nor mlflow-skinny is installed.
        ConfigError: If an argument is out of range; at the first use if the server does not answer.
    """

    _metric_rule, _metric_got = "a metric must be a number", "{kind}"
    _metric_fix = "Log pictures with log_image, text with log_text, or use logger.experiment."

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: Mapping[str, Any] | None = None,
        save_dir: str | os.PathLike[str] | None = "./mlruns",
        log_model: bool | str = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = None,
        *,
        nested_run_id: str | None = None,
        on_unreachable: str | None = None,
        delivery: str | None = None,
        flush_timeout: float = 30.0,
        log_system_metrics: bool = False,
    ) -> None:
        if find_spec("mlflow") is None:
            raise missing("MLFlowLogger", "mlflow")
        check_choice("MLFlowLogger", "log_model", log_model, (False, True, "all"))
        check_choice("MLFlowLogger", "on_unreachable", on_unreachable, (None, "error", "spool"))
        check_choice("MLFlowLogger", "delivery", delivery, (None, "sync", "async"))
        check_choice("MLFlowLogger", "synchronous", synchronous, (None, False, True))
        texts = {"run_name": run_name, "tracking_uri": tracking_uri, "run_id": run_id, "nested_run_id": nested_run_id}
        check_texts("MLFlowLogger", experiment_name=experiment_name, artifact_location=artifact_location, **texts)
        check_paths("MLFlowLogger", save_dir=save_dir)
        check_numbers("MLFlowLogger", flush_timeout=flush_timeout)
        _check_names(experiment_name, tags)
        delivery = "sync" if synchronous and delivery is None else delivery
        super().__init__(save_dir or "./mlruns", prefix, delivery, flush_timeout)
        self._experiment_name, self._run_name = str(experiment_name), run_name
        self._uri = tracking_uri or default_uri(self._save_dir)
        self._tags = {str(key): str(value) for key, value in (tags or {}).items()}
        if nested_run_id is not None:
            self._tags["mlflow.parentRunId"] = nested_run_id
        self._log_model, self._artifact_location = log_model, artifact_location
        self._run_id, self._given_id, self._on_unreachable = run_id, run_id, on_unreachable
        self._token = uuid.uuid4().hex
        self._direct: list[tuple[Mapping[str, float], float, int]] = []
        self._direct_waits = self._direct_unsure = False
        self._names = {}
        self._infinite: set[str] = set()
        self._log_system_metrics = log_system_metrics
        self._system_metrics: SystemMetrics | None = None
        self._samples = itertools.count()

    def _started(self) -> Any:
        """Return an ``MlflowClient``; the run is made at the first use.

        Raises:
            ConfigError: If the server does not answer and the run may not go on without it.
        """
        _ = self.version
        if self._log_system_metrics and self._system_metrics is None:
            self._system_metrics = SystemMetrics(lambda found: self.log_metrics(found, next(self._samples)))
        return self._made_client()

    def replay_state(self) -> dict[str, Any]:
        """Return what finds this run again; user and password of the URI are not in it."""
        return {
            "experiment_name": self._experiment_name,
            "run_name": self._run_name,
            "tracking_uri": without_secret(self._uri),
            "tags": self._tags,
            "save_dir": self._save_dir,
            "prefix": self._prefix,
            "artifact_location": self._artifact_location,
            "version": self.version,
        }

    @classmethod
    def from_replay_state(cls, state: Mapping[str, Any]) -> MLFlowLogger:
        """Return a logger of the run that `replay_state` described."""
        given = dict(state)
        version = given.pop("version")
        if "***" in str(given.get("tracking_uri")):  # the secret is in the environment, or nowhere
            given["tracking_uri"] = os.environ.get("MLFLOW_TRACKING_URI") or given["tracking_uri"].replace("***@", "")
        made = cls(**given)
        made.join(version)
        return made

    @unless_silent
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write values of one step; during a run they are sent from the logger's thread.

        Args:
            metrics: Numbers or single-element tensors by name.
            step: The step; if left out the run's, or 0 outside of a run.

        Raises:
            MisconfigurationException: If a value is no number.
            ConnectionError: If the server is away, outside of a run.
        """
        values = {str(key): self._number(str(key), value) for key, value in metrics.items()}
        at = int(self.step_or_current(step) or 0)
        if not -(2**63) <= at < 2**63:
            raise MisconfigurationException(f"MLFlowLogger.log_metrics(step={at}): a step must fit into 64 bits.")
        self._direct.append((values, time.time(), at))
        if not self._direct_waits:
            self._direct_waits = True
            self.later(self._send_direct, "metrics that were logged directly")

    def _send_direct(self) -> None:
        """Send what `log_metrics` was given; after a failure the server is asked what it has of it."""
        self._direct_waits = False
        rows, unsure, self._direct_unsure = list(self._direct), self._direct_unsure, True
        if self._feed is None:  # the caller gets the error, and may try again
            self._direct, self._direct_unsure = [], False
        refusal = None
        try:
            self._send_rows(rows, unsure)
        except ValueError:  # one of them will never be taken, and must not hold up the others
            for row in rows:
                try:
                    self._send_rows([row], unsure=True)
                except ValueError as error:
                    refusal = error
        del self._direct[: len(rows)]
        self._direct_unsure = False
        if refusal is not None:
            raise refusal

    @unless_silent
    def log_records(self, records: Sequence[Record], unsure: bool = False) -> None:
        """Write records; returns when the server has them.

        Args:
            records: What to write, each with its own wall time.
            unsure: Whether the server may have some already; it is asked, and gets what it lacks.

        Raises:
            ConnectionError: If the server is away.
            ValueError: If it refuses one of them for good.
        """
        with self.exclusive():
            self._send_rows([(record.values, record.time, record.step) for record in records], unsure)

    def _send_rows(self, rows: Iterable[tuple[Mapping[str, float], float, int]], unsure: bool) -> None:
        from mlflow.entities import Metric

        client = self._connected()
        metrics = [
            Metric(self._accepted(self._prefixed(key)), float(value), int(wall * 1000), step)
            for values, wall, step in rows
            for key, value in values.items()
        ]
        if unsure:
            metrics = self._missing(client, metrics)
        for start in range(0, len(metrics), _METRICS):
            try:
                ask(client.log_batch, self._run_id, metrics=metrics[start : start + _METRICS])
            except ValueError as error:
                self._check_run(client, error)
                raise
            self.progressed()
        self._note_infinities(client, metrics)

    def _check_run(self, client: Any, refusal: ValueError) -> None:
        """Raise a ConnectionError where the run is gone, which may be restored, and no value was refused."""
        stage = "deleted"
        with suppress(ValueError):
            stage = ask(client.get_run, self._run_id).info.lifecycle_stage
        if stage == "deleted":
            raise ConnectionError(f"run {self._run_id} was deleted on the server. Restore it there.") from refusal

    def _note_infinities(self, client: Any, metrics: Sequence[Any]) -> None:
        """Keep as text what MLflow turns into the largest number that it has."""
        for metric in metrics:
            if math.isinf(metric.value) and metric.key not in self._infinite:
                text = f"{metric.value} at step {metric.step}"
                ask(client.set_tag, self._run_id, f"infinite.{metric.key}", text)
                self._infinite.add(metric.key)
                self._warn_once(
                    "infinite",
                    f"MLFlowLogger: {metric.key!r} was {metric.value} at step {metric.step}. MLflow's databases keep "
                    "infinities as 1.8e308; the first of each metric stands as text in a tag.",
                )

    def _missing(self, client: Any, metrics: list[Any]) -> list[Any]:
        """Return those that the server does not have."""
        data = ask(client.get_run, self._run_id).data
        latest = {m.key: (m.step, m.timestamp) for m in getattr(data, "_metric_objs", ())}
        known: dict[str, Counter[tuple[int, int, str]]] = {}
        for metric in metrics:
            newest = latest.get(metric.key) if latest else (math.inf, math.inf) if data.metrics else None
            # What comes behind the newest that is there is not there; only else is the history read.
            if metric.key in known or newest is None or (metric.step, metric.timestamp) > newest:
                continue
            history = ask(client.get_metric_history, self._run_id, metric.key, timeout=60.0)
            known[metric.key] = Counter(_identity(entry) for entry in history)
        missing = []
        for metric in metrics:
            there, identity = known.get(metric.key), _identity(metric)
            if there is not None and there[identity]:
                there[identity] -= 1
            else:
                missing.append(metric)
        return missing

    @unless_silent
    def finalize(self, status: str) -> None:
        """Send the last checkpoints and end the run; a server that is away costs a warning.

        Args:
            status: ``"success"``, ``"failed"`` or ``"interrupted"``.

        Raises:
            ConnectionError: If the server is away, while a run feeds this logger.
        """
        if self._folder is None and self._checkpoint_callback is None:
            return
        if self._system_metrics is not None:
            self._system_metrics.end()
            self._system_metrics = None
        with self.exclusive():
            try:
                client = self._connected(FIRST_LOOK_SECONDS)
                self._send_final_checkpoints()
                if not self._is_users_own():
                    ask(client.set_terminated, self._run_id, _STATUSES.get(status, "FINISHED"))
            except (ConnectionError, ValueError) as error:
                if self._feed is not None:  # it says so, and how to end the run later
                    raise
                self.tell(f"MLFlowLogger: the run's end could not be sent: {error}")

    def _is_users_own(self) -> bool:
        """Return whether the run is MLflow's active one in this process: who opened it will end it."""
        active = getattr(sys.modules.get("mlflow"), "active_run", None)
        run = None if active is None else active()
        return run is not None and run.info.run_id == self._run_id

    def __getstate__(self) -> dict[str, Any]:
        _ = self.version  # a copy in another process writes to the same run
        return {**super().__getstate__(), "_client": None, "_system_metrics": None}


def _identity(metric: Any) -> tuple[int, int, str]:
    """Return what identifies a value of a metric, as every store keeps it."""
    value = float(metric.value)
    if math.isinf(value):
        value = math.copysign(_LARGEST, value)
    return int(metric.step), int(metric.timestamp), "nan" if math.isnan(value) else repr(value)


def _check_names(experiment_name: Any, tags: Any) -> None:
    if not experiment_name:
        raise ConfigError(Problem(f"MLFlowLogger(experiment_name={experiment_name!r})", "it must have a name"))
    if not isinstance(tags, (Mapping, type(None))):
        raise ConfigError(Problem(f"MLFlowLogger(tags={tags!r})", "it must be a dict", type(tags).__name__))
