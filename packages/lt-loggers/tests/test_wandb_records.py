"""WandbLogger writes runs whose transaction logs hold each value once, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
from wandb_reading import (  # noqa: F401 - each file uses its part; quiet is a fixture
    OWN,
    STEP,
    Entry,
    axes,
    entries,
    everything,
    logs,
    marks,
    points,
    quiet,
    records,
    rows,
)

from lt_loggers import WandbLogger


@pytest.mark.slow
def test_many_records(tmp_path: Path) -> None:
    """20,000 records of 10 metrics come back exactly."""
    logger = WandbLogger(save_dir=tmp_path)
    sent = records(20_000, width=10)
    for first in range(0, len(sent), 500):
        logger.log_records(sent[first : first + 500])
    logger.save()
    found = rows(logger)
    assert [(row[STEP], row["_timestamp"]) for row in found] == [(r.step, r.time) for r in sent]
    assert all(row[name] == value for row, r in zip(found, sent, strict=True) for name, value in r.values.items())
    logger.finish("failed")


def test_saved_is_on_disk(tmp_path: Path) -> None:
    """Rows and configuration are in the transaction log when save returns, without a wait for W&B's own time."""
    logger = WandbLogger(save_dir=tmp_path)
    _ = logger.experiment
    start = time.monotonic()
    for number in range(5):
        logger.log_hyperparams({"number": number})
        logger.log_records(records(number + 1, start=number))
        logger.save()
        assert len(rows(logger)) == number + 1
        assert len(everything(logger, "config")) == number + 1
    assert time.monotonic() - start < 5.0
    logger.finish("failed")


def test_resend_in_doubt(tmp_path: Path) -> None:
    """Records that are sent again in doubt, saved before or not, are there once."""
    logger = WandbLogger(save_dir=tmp_path)
    logger.log_records(records(30))
    logger.log_records(records(40), unsure=True)
    logger.save()
    logger.log_records(records(50), unsure=True)
    logger.finish("failed")
    logger.log_records(records(60), unsure=True)
    logger.finish("failed")
    assert marks(logger) == dict.fromkeys(range(60), 1)


_TRAINER = """
import json, os, sys
from lt_interface import Record
from lt_loggers import WandbLogger
logger = WandbLogger(save_dir=sys.argv[1], project="p", tags=["x"], offline=True)
_ = logger.experiment
print(json.dumps(logger.replay_state()), flush=True)
i = 0
while True:
    logger.log_records([Record(i, "train", "step", i, 1000.0 + i, {"m0": float(i)})])
    i += 1
    if i % 50 == 0:
        logger.save()
        print(i, flush=True)
"""


@pytest.mark.parametrize(("saves", "shared"), [(0, False), (1, False), (5, False), (1, True)])
def test_kill(tmp_path: Path, saves: int, shared: bool) -> None:
    """After kill -9, what save returned for is there, and sending all again loses and repeats nothing.

    That is so too where the trainer's parent, which resumes it, lent it W&B's own process.
    """
    wandb.setup().ensure_service()
    environment = {key: value for key, value in os.environ.items() if shared or not key.startswith("WANDB_SERVICE")}
    assert not shared or any(key.startswith("WANDB_SERVICE") for key in environment)
    trainer = subprocess.Popen(
        [sys.executable, "-c", _TRAINER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert trainer.stdout is not None
        state = json.loads(trainer.stdout.readline())
        for _ in range(saves):
            trainer.stdout.readline()
        time.sleep(0.01)
    finally:
        os.kill(trainer.pid, signal.SIGKILL)
        trainer.communicate(timeout=30)
    logger = WandbLogger.from_replay_state(state)
    assert marks(logger).keys() >= set(range(50 * saves))
    sent = records(2000)
    for first in range(0, len(sent), 500):
        logger.log_records(sent[first : first + 500], unsure=True)
    logger.finish("failed")
    assert marks(logger).keys() >= set(range(2000))
    assert set(marks(logger).values()) == {1}
    assert {tuple(run.tags) for run in everything(logger, "run")} == {("x",)}
    assert len(logs(logger)) == 2


def test_torn_log(tmp_path: Path) -> None:
    """A log that was cut off at any byte is read up to the cut, and only the rest is sent again."""
    old = WandbLogger(save_dir=tmp_path, id="abc")
    old.log_records(records(100, width=10))
    old.finish("failed")
    (log,) = logs(old)
    whole = log.read_bytes()
    for cut in (7, 40_000, 40_001, 65_536, len(whole) - 3):
        log.write_bytes(whole[:cut])
        before = len(marks(old))
        new = WandbLogger(save_dir=tmp_path, id="abc")
        new.log_records(records(100, width=10), unsure=True)
        new.finish("failed")
        assert marks(new) == dict.fromkeys(range(100), 1)
        (added,) = [path for path in logs(new) if path != log]
        assert sum(e.WhichOneof("record_type") == "history" for e in entries(added)) == 100 - before
        added.unlink()


def test_waits_for_a_writer(tmp_path: Path) -> None:
    """A process of W&B's that is still writing after its trainer's death is waited for."""
    old = WandbLogger(save_dir=tmp_path, id="abc")
    old.log_records(records(100, width=10))
    old.finish("failed")
    (log,) = logs(old)
    whole = log.read_bytes()
    code = (
        "import sys, time; file = open(sys.argv[1], 'ab'); print('open', flush=True); "
        "time.sleep(1); file.write(sys.stdin.buffer.read())"
    )
    log.write_bytes(whole[:30_000])
    writer = subprocess.Popen([sys.executable, "-c", code, str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write(whole[30_000:])
        writer.stdin.close()
        writer.stdout.readline()
        new = WandbLogger(save_dir=tmp_path, id="abc")
        new.log_records(records(101, width=10), unsure=True)
    finally:
        writer.wait(30)
        writer.stdout.close()  # type: ignore[union-attr]
    new.finish("failed")
    assert marks(new) == dict.fromkeys(range(101), 1)


def children(name: str) -> list[int]:
    """Return the processes of a name that this one started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parts = (folder / "stat").read_text().rpartition(")")
        except OSError:
            continue
        if parts[0].partition("(")[2] == name and int(parts[2].split()[1]) == os.getpid():
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the process through /proc")
def test_death_of_the_service(tmp_path: Path) -> None:
    """When W&B's own process dies, that is an outage, and the run goes on in a new one."""
    logger = WandbLogger(save_dir=tmp_path)
    logger.log_records(records(100))
    (service,) = children("wandb-core")
    os.kill(service, signal.SIGKILL)

    def fail() -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            logger.log_records(records(1000, start=999))
            time.sleep(0.01)

    with pytest.raises(ConnectionError):
        fail()
    logger.log_records(records(1000), unsure=True)
    logger.finish("failed")
    assert marks(logger) == dict.fromkeys(range(1000), 1)
