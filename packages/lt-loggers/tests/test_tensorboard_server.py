"""A real TensorBoard server shows what TensorBoardLogger wrote."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lt_interface import Record
from lt_loggers import TensorBoardLogger

Ask = Callable[..., Any]


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    """Return a function that asks a server over ``tmp_path``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--reload_interval", "1", "--load_fast", "false"]
    with open(tmp_path / "server.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env={**os.environ})

    def answer(path: str, data: Any = None, **query: str) -> Any:
        url = f"http://127.0.0.1:{port}/data/{path}?{urllib.parse.urlencode(query)}"
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.load(reply)

    try:
        yield answer
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def until(question: Callable[[], Any]) -> Any:
    """Ask until there is an answer that counts."""
    end = time.monotonic() + 90
    while True:
        try:
            found = question()
        except OSError:
            found = None
        if found:
            return found
        assert time.monotonic() < end, "the server had no answer"
        time.sleep(0.3)


def test_server_shows_curves_and_last_values(tmp_path: Path, ask: Ask) -> None:
    """The server has each point of each curve, and its table of runs the last value beside the hyper-parameters."""
    logger = TensorBoardLogger(tmp_path, name="exp")
    logger.log_hyperparams({"lr": 0.5, "net": {"width": 8}})
    records = [Record(i, "train", "step", i, 1.7e9 + i, {"loss": 1.0 / (i + 1)}) for i in range(5)]
    logger.log_records([*records, Record(5, "validate", "epoch", 4, 1.7e9 + 5, {"val_acc": 0.75, "epoch": 0.0})])
    logger.finish("success")
    run = "exp/version_0"
    assert until(lambda: [r for r in ask("runs") if r == run]) == [run]
    points = until(lambda: ask("plugin/scalars/scalars", run=run, tag="loss"))
    assert [(wall, step) for wall, step, _ in points] == [(1.7e9 + i, i) for i in range(5)]
    assert [value for *_, value in points] == pytest.approx([1.0 / (i + 1) for i in range(5)])
    wanted = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "sliceSize": 10, "startIndex": 0}
    groups = until(lambda: ask("plugin/hparams/session_groups", wanted).get("sessionGroups"))
    assert groups[0]["hparams"]["net/width"] == 8.0
    values = {m["name"]["tag"]: m["value"] for m in groups[0]["metricValues"]}
    assert values["val_acc"] == pytest.approx(0.75)
