"""Open loggers whose trackers hang, are away or refuse, while training waits no longer than a limit."""

from __future__ import annotations

import http.client
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import SILENT
from torch import Tensor, nn

from lt_core import Callback, LightningModule, Trainer
from lt_core.loggers import Logger
from lt_core.tracking import opening
from lt_core.tracking import sender as delivery_module
from lt_interface import ConfigError

QUIET: dict[str, Any] = {**SILENT, "enable_checkpointing": False, "max_epochs": 1, "log_every_n_steps": 1}
DATA = [torch.full((1, 1), float(v)) for v in range(4)]


class Net(LightningModule):
    """Module that logs each batch's number."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"width": 1})
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.log("x", batch.mean())
        return self.layer(batch).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Remote(Logger):
    """Third party's logger of a tracker that `start` opens."""

    open_seconds = 0.2

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows, self.params, self.ended = folder, [], {}, []
        self.opened: Any = None
        self.asked = 0

    @property
    def directory(self) -> str:
        return str(self.folder / "run")

    @property
    def experiment(self) -> Any:
        self.asked += 1
        with self.exclusive():
            if self.opened is None:
                self.opened = self.start()
        return self.opened

    def start(self) -> Any:
        return "here"

    def log_graph(self, module: Any) -> None:
        self.rows.append("graph")

    def log_hyperparams(self, params: Any) -> None:
        self.params = dict(params)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert self.opened is not None
        self.rows.append((step, metrics["x"]))

    def finalize(self, status: str) -> None:
        self.ended.append(status)


class Server(Remote):
    """Logger of a server that is asked over HTTP; its own timeout is there for the test's sake."""

    port = 0

    def start(self) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/")
        return connection.getresponse().status


class Watch(Callback):
    """Callback that notes what still runs when training begins, and calls a function at its end."""

    def __init__(self, then: Any = None) -> None:
        self.then = then
        self.running: list[str] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.running = [thread.name for thread in threading.enumerate()]

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.then is not None:
            self.then()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(delivery_module, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(delivery_module, "HANG_SECONDS", 0.3)


@pytest.fixture
def warned() -> Iterator[list[warnings.WarningMessage]]:
    """Return the warnings of every thread."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


def texts(warned: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in warned if "could not be opened" in str(w.message) or "failed" in str(w.message)]


def fit(tmp_path: Path, logger: Any, *callbacks: Callback, **flags: Any) -> None:
    Trainer(**QUIET, **flags, logger=logger, callbacks=list(callbacks), default_root_dir=tmp_path).fit(Net(), DATA)


ROWS = [(step, float(step)) for step in range(4)]


@pytest.mark.parametrize("delivery", ["async", "sync"])
def test_a_server_that_never_answers_holds_up_no_training(
    tmp_path: Path, warned: list[warnings.WarningMessage], delivery: str
) -> None:
    """Training ends without the server, one warning names the limit, and the records wait in the journal."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        logger = Server(tmp_path)
        logger.port, watch = server.getsockname()[1], Watch()
        logger.flush_timeout, begun = 60.0, time.monotonic()  # what hangs is given up long before
        fit(tmp_path, logger, watch, logger_delivery=delivery)
        assert time.monotonic() - begun < 30
        assert watch.running is not None
        assert "lt-open-Server" in watch.running
        assert logger.rows == []
        assert [text.split(". ")[0] for text in texts(warned)] == ["Server could not be opened within 0.2 s"]
        assert any("4 records of metrics were not taken" in str(w.message) for w in warned)


def test_what_waited_is_delivered_when_the_logger_opens(tmp_path: Path, warned: list[warnings.WarningMessage]) -> None:
    """A server that answers at last gets the hyper-parameters and each record, once and in order."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        answering = threading.Thread(target=answer)
        logger = Server(tmp_path)
        logger.port = server.getsockname()[1]
        fit(tmp_path, logger, Watch(answering.start))
        answering.join(10)
    assert logger.rows == ROWS
    assert (logger.params, logger.ended, len(texts(warned))) == ({"width": 1}, ["success"], 1)
    assert logger.asked == 2  # by the thread that waited, and once when it had come


def test_a_tracker_that_is_away_is_tried_again(tmp_path: Path, warned: list[warnings.WarningMessage]) -> None:
    """A logger whose opening fails with an outage is reported once and opened later, not used before."""

    class Away(Remote):
        failures = 3

        def start(self) -> Any:
            if self.failures:
                self.failures -= 1
                raise ConnectionError("nobody there")
            return "here"

    logger = Away(tmp_path)
    fit(tmp_path, logger)
    assert logger.rows == ROWS
    assert [text.split(". ")[0] for text in texts(warned)] == [
        "Away could not be opened (ConnectionError: nobody there)"
    ]


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("wrong credentials"),
        ValueError("odd"),
        PermissionError("wrong key"),
        FileNotFoundError(2, "no such folder", "/x"),
    ],
)
def test_what_is_no_outage_ends_the_run_at_once(tmp_path: Path, error: Exception) -> None:
    """Wrong credentials, arguments and folders are errors before training, as they were raised."""

    class Wrong(Remote):
        def start(self) -> Any:
            raise error

    watch = Watch()
    with pytest.raises(type(error)) as caught:
        fit(tmp_path, Wrong(tmp_path), watch)
    assert caught.value is error
    assert watch.running is None


def test_a_logger_may_limit_itself(tmp_path: Path) -> None:
    """One that declares no limit is opened by the thread that trains; others by one of their own."""
    threads: list[str] = []

    class Limited(Remote):
        open_seconds = None

        def start(self) -> Any:
            threads.append(threading.current_thread().name)
            return "here"

    class Plain(Limited):
        open_seconds = 10.0

    fit(tmp_path, [Limited(tmp_path / "a"), Plain(tmp_path / "b")])
    assert threads == ["MainThread", "lt-open-Plain"]


def test_a_version_that_needs_the_tracker_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the names of folders do not come, the run ends with an error that says so and does not hang."""
    over = threading.Event()

    class Asking(Remote):
        @property
        def version(self) -> str:
            over.wait(60)
            return "late"

    monkeypatch.setattr(opening, "IDENTITY_SECONDS", 0.2)
    with pytest.raises(ConfigError, match=r"Asking: name, version and directory must be known within 0.2 s"):
        fit(tmp_path, Asking(tmp_path))
    over.set()
