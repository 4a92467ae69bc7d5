"""Identity of an MLflow run, and the connection to its server."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lt_interface import ConfigError, Problem
from lt_interface.versions import NamedLogger, replace_text
from lt_loggers.mlflow.client import ask, calling, make_client, redacted, without_secret
from lt_loggers.mlflow.names import accepted

__all__ = ["FIRST_LOOK_SECONDS", "MLFlowRun"]

FIRST_LOOK_SECONDS = 4.0
_TOKEN, _NOTE = "lt.run", "mlflow_run.json"


class MLFlowRun(NamedLogger):
    """One run of an experiment: the server's where it answers, a name of this machine's while it is away."""

    _experiment_name: str
    _run_name: str | None
    _uri: str
    _tags: Mapping[str, str]
    _artifact_location: str | None
    _on_unreachable: str | None
    _token: str  # a tag of the run, by which one whose making was not answered is found
    _names: dict[str, str]

    _run_id: str | None = None
    _given_id: str | None = None
    _experiment_id: str | None = None
    _folder: str | None = None
    _client: Any = None
    _goes_on = _ready = _maybe_created = False

    @property
    def name(self) -> str | None:
        """Return the experiment's id, or its name while the server is away."""
        if self._is_silent():
            return self._experiment_name
        _ = self.version
        return self._experiment_id or self._experiment_name

    @property
    def given_version(self) -> str | None:
        """Return the run's id if it was given."""
        return self._given_id

    @property
    def version(self) -> str | None:
        """Return the run's id, or a name of this machine's where the server was away when the run began."""
        if self._folder is None and not self._is_silent():
            self._identify()
        return self._folder

    @property
    def run_id(self) -> str | None:
        """Return the run's id, or None while the server is away."""
        _ = self.version
        return self._run_id

    @property
    def experiment_id(self) -> str | None:
        """Return the experiment's id, or None while the server is away."""
        _ = self.version
        return self._experiment_id

    @property
    def root_dir(self) -> str:
        """Return the folder of all this machine's runs of the experiment."""
        root = self._save_dir
        if self._uri.removeprefix("file:").removeprefix("//") in (root, f"{root}/"):
            root += "-runs"  # MLflow takes every folder in its store for an experiment
        return os.path.join(root, self._experiment_name.replace("/", "_").strip(".") or "experiment")

    @property
    def log_dir(self) -> str | None:
        """Return this run's folder on this machine."""
        return os.path.join(self.root_dir, str(self.version)) if self.version else None

    def _made_client(self) -> Any:
        if self._client is None:
            self._client = make_client(self._uri)
        return self._client

    def _connected(self, timeout: float = 10.0) -> Any:
        """Return the client when experiment and run are there.

        Args:
            timeout: Seconds for the first answer.

        Raises:
            ConnectionError: If the server is away.
            ConfigError: If the run that was asked for is not there.
        """
        _ = self.version
        self._connect(timeout)
        return self._made_client()

    def _identify(self) -> None:
        """Settle the run's identity: the server's if it answers."""
        with self.exclusive():
            if self._folder is not None:
                return
            try:
                self._connect(FIRST_LOOK_SECONDS)
                self._folder = self._run_id
            except ConnectionError as error:
                where = f"MLFlowLogger(tracking_uri={without_secret(self._uri)!r})"
                if self._on_unreachable != "spool" and not (self._goes_on and self._on_unreachable is None):
                    fix = 'Start it, mend the URI, or write on_unreachable="spool" to begin without it.'
                    got = f"{redacted(str(error))[:300]}"
                    raise ConfigError(Problem(where, "the tracking server must answer", got, fix)) from None
                self._folder = self._run_id or f"spooled-{self._token[:8]}"
                self._warn_once("away", f"{where}: no answer; the run goes on, and all is sent when the server comes.")
            self._remember()

    def _connect(self, timeout: float = 10.0) -> None:
        """Find or make experiment and run, once."""
        if self._ready:
            return
        client = self._made_client()
        if self._run_id is None:
            self._experiment_id = self._experiment_id or self._find_experiment(client, timeout)
            self._run_id = self._find_run(client)
        else:
            try:
                info = ask(client.get_run, self._run_id, timeout=timeout).info
            except ValueError as error:
                where = f"MLFlowLogger(run_id={self._run_id!r})"
                raise ConfigError(Problem(where, "this run must exist", str(error), "Leave run_id out.")) from error
            self._experiment_id = info.experiment_id
            if info.status != "RUNNING":
                ask(client.update_run, self._run_id, status="RUNNING")
        self._ready = True
        if self._folder is not None:
            self._remember()

    def _find_experiment(self, client: Any, timeout: float) -> str:
        found = ask(client.get_experiment_by_name, self._experiment_name, timeout=timeout)
        if found is None:
            place = self._artifact_location
            if place is None and self._uri.startswith("sqlite:"):
                place = f"file://{os.path.join(self._save_dir, 'artifacts', accepted(self._experiment_name))}"
            try:
                return str(ask(client.create_experiment, self._experiment_name, artifact_location=place))
            except ValueError:  # another run was faster
                found = ask(client.get_experiment_by_name, self._experiment_name)
        if found is None or found.lifecycle_stage == "deleted":
            where = f"MLFlowLogger(experiment_name={self._experiment_name!r})"
            fix = "Restore it on the server, or choose another name."
            raise ConfigError(Problem(where, "this experiment was deleted on the server", fix=fix))
        return str(found.experiment_id)

    def _find_run(self, client: Any) -> str:
        """Make the run; where an earlier try may have made it, look for it first."""
        if self._maybe_created:
            found = ask(client.search_runs, [self._experiment_id], f"tags.`{_TOKEN}` = '{self._token}'")
            if found:
                return str(found[0].info.run_id)
        from mlflow.tracking.context.registry import resolve_tags

        self._maybe_created = True
        with calling():
            tags = {**resolve_tags(self._tags), _TOKEN: self._token}
            return str(client.create_run(self._experiment_id, tags=tags, run_name=self._run_name).info.run_id)

    def _remember(self) -> None:
        """Keep beside the journal which run this is."""
        folder = os.path.join(self.root_dir, str(self._folder))
        note = {"run_id": self._run_id, "experiment_id": self._experiment_id, "token": self._token}
        try:
            os.makedirs(folder, exist_ok=True)
            replace_text(os.path.join(folder, _NOTE), json.dumps(note))
        except OSError as error:
            raise self._unwritable(error) from error

    def join(self, version: int | str) -> None:
        """Go on in an earlier run.

        Args:
            version: The run's id, or the name of its folder on this machine.
        """
        with self.exclusive():
            self._folder, self._goes_on, self._ready, self._maybe_created = str(version), True, False, True
            self._run_id = None if str(version).startswith("spooled-") else str(version)
            with suppress(OSError, ValueError, KeyError):
                with open(os.path.join(self.root_dir, str(version), _NOTE), encoding="utf-8") as file:
                    note = json.load(file)
                self._run_id, self._token = note["run_id"] or self._run_id, note["token"]
                self._experiment_id = note["experiment_id"]

    def _accepted(self, given: str) -> str:
        """Return a name that MLflow takes, with a warning where it is another."""
        name = self._names.get(given)
        if name is None:
            name = self._names[given] = accepted(given)
            if name != given:
                renamed = f"it is logged as {name!r}, and each other name of that kind alike."
                self._warn_once("names", f"MLFlowLogger: MLflow takes no name {given!r}; {renamed}")
        return name
