"""Read W&B's transaction logs back, for the tests of WandbLogger."""

from __future__ import annotations

import json
import struct
import time
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import wandb

from lt_interface import Logger, Record

__all__ = [
    "OWN",
    "STEP",
    "Entry",
    "axes",
    "entries",
    "everything",
    "logs",
    "marks",
    "points",
    "quiet",
    "records",
    "rows",
    "wait_for_the_end",
]

Entry = import_module("wandb.proto.wandb_internal_pb2").Record

STEP = "trainer/global_step"
OWN = {"_step", "_timestamp", "_runtime", "_lt/record", STEP}


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Keep wandb silent and offline, and end its process after the last test."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_MODE": "offline"}.items():
            patch.setenv(key, value)
        yield
        wandb.teardown()


def entries(path: Path) -> Iterator[Any]:
    """Return what one transaction log holds."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part = data[at + 7 : at + 7 + length]
        at += 7 + length
        if len(part) < length:
            return
        whole = part if kind in (1, 2) else whole + part
        if kind in (1, 4):
            yield Entry.FromString(whole)


def logs(logger: Logger) -> list[Path]:
    """Return all transaction logs of a logger's run."""
    return sorted(Path(str(logger.save_dir), "wandb").glob(f"*run-*-{logger.version}*/*.wandb"))


def everything(logger: Logger, kind: str) -> list[Any]:
    """Return all entries of one kind that a run has."""
    return [getattr(e, kind) for log in logs(logger) for e in entries(log) if e.WhichOneof("record_type") == kind]


def wait_for_the_end(logger: Logger) -> None:
    """Wait for the end of a run that was finished: wandb's own process writes it a moment later."""
    end = time.monotonic() + 30
    while len(everything(logger, "exit")) < len(logs(logger)):
        assert time.monotonic() < end, "the run's end was never written"
        time.sleep(0.02)


def rows(logger: Logger) -> list[dict[str, Any]]:
    """Return the rows of a run's history."""
    found = []
    for history in everything(logger, "history"):
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item}
        found.append(row)
    return found


def axes(logger: Logger) -> dict[str, str]:
    """Return the x-axis that each metric was given."""
    return {m.name or m.glob_name: m.step_metric for m in everything(logger, "metric")}


def points(logger: Logger) -> dict[str, dict[int, float]]:
    """Return name to x-axis value to value; a point that is there twice is an error."""
    found: dict[str, dict[int, float]] = {}
    given = axes(logger)
    for row in rows(logger):
        for name in row.keys() - OWN:
            axis = given.get(name) or STEP
            at = row.get(axis, row["_step"])
            assert at not in found.setdefault(name, {}), f"{name}: {axis} {at} twice"
            found[name][at] = row[name]
    return found


def records(count: int, width: int = 1, start: int = 0) -> list[Record]:
    """Return records of ``width`` metrics, one a step."""
    return [
        Record(i, "train", "step", i, 1000.0 + i, {f"m{j}": i + j / 7 for j in range(width)})
        for i in range(start, count)
    ]


def marks(logger: Logger) -> Counter[int]:
    """Return how often each step is there."""
    return Counter(row[STEP] for row in rows(logger))
