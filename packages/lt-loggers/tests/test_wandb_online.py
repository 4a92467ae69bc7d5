"""WandbLogger loses no row and repeats none on its way to a server, which is played here by a small one."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb

from lt_interface import MisconfigurationException, Record
from lt_loggers import WandbLogger

KEY = "0123456789abcdef" * 2 + "01234567"


class Server(ThreadingHTTPServer):
    """Server that takes runs as W&B's does: rows by their place, so that a batch that comes twice is one.

    Attributes:
        history: The rows by place.
        trouble: What happens to a batch of rows: ``""`` nothing; ``"503"`` it is refused; ``"lost"`` it is
            taken once, but the answer is lost; ``"hang"`` no answer comes; ``"401"`` the key is refused.
        asked: How often each query came.
        has_run: Whether a run was made.
        exits: The exit codes that runs ended with.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.history: dict[int, dict[str, Any]] = {}
        self.trouble = ""
        self.asked: Counter[str] = Counter()
        self.exits: list[int] = []
        self.has_run = False
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.ended = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over connections that the client dropped."""

    def answer(self, query: str, values: dict[str, Any]) -> Any:
        """Return the answer to a GraphQL query."""
        match = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = match[1] if match else ""
        self.asked[name] += 1
        project = {"id": "p1", "name": "p", "entity": {"id": "e1", "name": "team"}}
        if name == "RunResumeStatus":
            last = [json.dumps(self.history[max(self.history)])] if self.history else []
            bucket = {
                "id": "b1",
                "name": values["name"],
                "summaryMetrics": "{}",
                "displayName": "x",
                "logLineCount": 0,
                "historyLineCount": len(self.history),
                "eventsLineCount": 0,
                "historyTail": json.dumps(last),
                "eventsTail": "[]",
                "config": "{}",
                "tags": [],
                "notes": None,
                "wandbConfig": '{"t": 1}',
            }
            return {"model": {**project, "bucket": bucket if self.has_run else None}}
        if name == "UpsertBucket":
            bucket = {"id": "b1", "name": values["name"], "displayName": "x", "config": "{}", "project": project}
            made, self.has_run = not self.has_run, True
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": len(self.history)}, "inserted": made}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/file"} for file in values["files"]]
            return {"createRunFiles": {"runID": "b1", "uploadHeaders": [], "files": files}}
        return {}

    def take(self, batch: dict[str, Any]) -> None:
        """Keep the rows of a batch."""
        part = (batch.get("files") or {}).get("wandb-history.jsonl")
        for place, line in enumerate(part["content"] if part else (), start=part["offset"] if part else 0):
            self.history[place] = json.loads(line)
        if batch.get("complete"):
            self.exits.append(batch["exitcode"])

    def marks(self) -> Counter[int]:
        """Return how often each record is there."""
        return Counter(int(row["_lt/record"]) for row in list(self.history.values()))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: Any) -> None:
        """Write no log."""

    def do_PUT(self) -> None:
        self.body()
        self.reply({})

    def do_POST(self) -> None:
        body = self.body()
        server = self.server
        if self.path.endswith("/graphql"):
            request = json.loads(body)
            if server.trouble == "401":
                self.reply({"errors": [{"message": "user is not logged in"}]}, 401)
                return
            self.reply({"data": server.answer(request["query"], request.get("variables") or {})})
        elif not self.path.endswith("/file_stream"):
            self.reply({})
        elif server.trouble == "503":
            self.reply({}, 503)
        elif server.trouble == "hang":
            server.ended.wait(60)
        else:
            server.take(json.loads(body))
            if server.trouble == "lost":
                server.trouble = ""
                self.close_connection = True
                self.connection.close()
                return
            self.reply({})

    def body(self) -> bytes:
        data = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def reply(self, answer: Any, code: int = 200) -> None:
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """Run a server and point wandb to it."""
    wandb.teardown()
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    set_environment(monkeypatch, tmp_path, made.url)
    yield made
    made.trouble = ""
    made.ended.set()
    wandb.teardown()
    made.shutdown()
    thread.join(30)
    made.server_close()


def set_environment(patch: pytest.MonkeyPatch, home: Path, url: str) -> None:
    for key, value in {
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": url,
        "WANDB_API_KEY": KEY,
        "WANDB_ERROR_REPORTING": "false",
        "WANDB__DISABLE_STATS": "true",
        "HOME": str(home / "home"),
    }.items():
        patch.setenv(key, value)


def settings() -> dict[str, Any]:
    """Return settings that make W&B's own process send at once."""
    return {"x_file_stream_transmit_interval": 1.0, "x_file_stream_retry_wait_min_seconds": 0.1}


def records(count: int) -> list[Record]:
    return [Record(i, "train", "step", i, 1000.0 + i, {"loss": 1.0 / (i + 1)}) for i in range(count)]


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_rows_reach_the_server(server: Server, tmp_path: Path) -> None:
    """Each record is one row there, with its wall time and step; the failed run ends with its exit code."""
    logger = WandbLogger(save_dir=tmp_path, id="abc", project="p", settings=settings())
    logger.log_records(records(50))
    logger.save()
    logger.finish("failed")
    rows = [server.history[place] for place in sorted(server.history)]
    assert [(row["trainer/global_step"], row["_timestamp"]) for row in rows] == [(i, 1000.0 + i) for i in range(50)]
    assert server.exits == [1]


def test_lost_answer(server: Server, tmp_path: Path) -> None:
    """A batch whose answer was lost is sent again and is there once."""
    server.trouble = "lost"
    logger = WandbLogger(save_dir=tmp_path, id="abc", project="p", settings=settings())
    logger.log_records(records(50))
    wait_for(lambda: len(server.history) == 50)
    logger.finish("failed")
    assert server.marks() == dict.fromkeys(range(50), 1)


@pytest.mark.parametrize("trouble", ["503", "hang"])
def test_training_goes_on_without_the_server(server: Server, tmp_path: Path, trouble: str) -> None:
    """A server that fails amid a run delays neither rows, nor flush, nor the end beyond flush_timeout."""
    logger = WandbLogger(save_dir=tmp_path, id="abc", project="p", settings=settings(), flush_timeout=2.0)
    _ = logger.experiment
    server.trouble = trouble
    start = time.monotonic()
    logger.log_records(records(200))
    logger.flush()
    assert time.monotonic() - start < 2.0
    start = time.monotonic()
    logger.finish("failed")
    assert time.monotonic() - start < 6.0
    assert len(server.history) == 0


_TRAINER = """
import json, os, sys, time
from lt_interface import Record
from lt_loggers import WandbLogger
folder, settings = sys.argv[1], json.loads(sys.argv[2])
logger = WandbLogger(save_dir=folder, id="abc", project="p", settings=settings)
rows = [Record(i, "train", "step", i, 1000.0 + i, {"loss": 1.0 / (i + 1)}) for i in range(300)]
for first in range(0, 200, 20):
    logger.log_records(rows[first:first + 20])
    logger.save()
    time.sleep(0.25)
print(json.dumps(logger.replay_state()), flush=True)
time.sleep(600)
"""


def test_kill_before_upload(server: Server, tmp_path: Path) -> None:
    """What a killed trainer could not upload is sent by the next process, and nothing twice."""
    trainer = subprocess.Popen(
        [sys.executable, "-c", _TRAINER, str(tmp_path), json.dumps(settings())], stdout=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: len(server.history) >= 20)
        server.trouble = "503"
        assert trainer.stdout is not None
        state = json.loads(trainer.stdout.readline())
    finally:
        os.kill(trainer.pid, signal.SIGKILL)
        trainer.communicate(timeout=30)
    there = len(server.history)
    assert 0 < there < 200
    server.trouble = ""
    assert KEY not in json.dumps(state)
    logger = WandbLogger.from_replay_state(state)
    for first in range(0, 300, 100):
        logger.log_records(records(300)[first : first + 100], unsure=True)
    logger.save()
    logger.finish("failed")
    wait_for(lambda: len(server.marks()) == 300)
    assert server.marks() == dict.fromkeys(range(300), 1)
    assert server.asked["RunResumeStatus"] == 2


def test_unreachable_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a network the run is kept on this machine, with one warning that says how to send it."""
    wandb.teardown()
    set_environment(monkeypatch, tmp_path, "http://127.0.0.1:9")
    logger = WandbLogger(save_dir=tmp_path, id="abc", project="p", flush_timeout=2.0)
    start = time.monotonic()
    with pytest.warns(UserWarning, match="could not be reached.*wandb sync") as caught:
        logger.log_records(records(5))
    assert len(caught) == 1
    assert time.monotonic() - start < 10.0
    logger.save()
    assert logger.experiment.offline
    assert logger.version == "abc"
    logger.finish("failed")
    assert KEY not in json.dumps(logger.replay_state())
    assert [file for file in tmp_path.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()] == []


def test_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without an API key one line names both ways to give it, and the way without."""
    wandb.teardown()
    set_environment(monkeypatch, tmp_path, "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    logger = WandbLogger(save_dir=tmp_path)
    with pytest.raises(MisconfigurationException, match=r"WANDB_API_KEY.*wandb login.*offline=True") as caught:
        _ = logger.experiment
    assert "\n" not in str(caught.value)


def test_malformed_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key of a wrong form is refused in the same line, which does not repeat it."""
    wandb.teardown()
    set_environment(monkeypatch, tmp_path, "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    with pytest.raises(MisconfigurationException, match=r"WANDB_API_KEY.*wandb login") as caught:
        _ = WandbLogger(save_dir=tmp_path).experiment
    assert "secret" not in str(caught.value)


def test_refused_key(server: Server, tmp_path: Path) -> None:
    """A key that the server refuses gives the same line at once, and no run that lives on."""
    server.trouble = "401"
    with pytest.raises(MisconfigurationException, match=r"refuses the API key.*WANDB_API_KEY.*wandb login") as caught:
        _ = WandbLogger(save_dir=tmp_path, flush_timeout=5.0).experiment
    assert KEY not in str(caught.value)
