"""Read back what a run's journal says was due, and what each tracker has of it."""

from __future__ import annotations

import csv
import json
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lt_core.journal import Journal

__all__ = ["Points", "due", "in_csv", "in_mlflow", "in_tensorboard", "in_wandb", "journal_of", "rounded", "wandb_rows"]

Points = dict[str, Counter[tuple[int, float]]]


def journal_of(folder: Path) -> Path:
    (path,) = folder.rglob("metrics.journal")
    return path


def due(folder: Path) -> Points:
    """Return what a run's journal says was due."""
    points: Points = defaultdict(Counter)
    for record in Journal(journal_of(folder)).read():
        for name, value in record.values.items():
            points[name][record.step, value] += 1
    return dict(points)


def in_mlflow(uri: str, run_id: str) -> Points:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    names = client.get_run(run_id).data.metrics
    return {n: Counter((m.step, m.value) for m in client.get_metric_history(run_id, n)) for n in names}


def in_tensorboard(folder: str) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in reader.Tags()["scalars"] if tag != "hp_metric"]
    return {tag: Counter((e.step, e.value) for e in reader.Scalars(tag)) for tag in tags}


def rounded(points: Points) -> Points:
    """Return values as TensorBoard keeps them, in 32 bits."""
    return {
        name: Counter({(s, float(torch.tensor(v, dtype=torch.float32))): n for (s, v), n in counts.items()})
        for name, counts in points.items()
    }


def wandb_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the history of all offline parts of the only run, row by row."""
    from wandb.proto import wandb_internal_pb2

    for path in sorted(folder.rglob("*.wandb")):
        data, place, whole = path.read_bytes(), 7, b""
        while place + 7 <= len(data):
            left = 32768 - place % 32768
            if left < 7:
                place += left
                continue
            _, length, kind = struct.unpack("<IHB", data[place : place + 7])
            if kind == 0 or place + 7 + length > len(data):
                break
            part = data[place + 7 : place + 7 + length]
            place += 7 + length
            whole = part if kind in (1, 2) else whole + part
            if kind in (1, 4):
                record = wandb_internal_pb2.Record.FromString(whole)
                if record.WhichOneof("record_type") == "history":
                    yield {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}


def in_wandb(folder: Path) -> Points:
    """Return the values of the only run's history."""
    found: Points = {}
    for row in wandb_rows(folder):
        for name, value in row.items():
            if name.startswith("value_"):
                found.setdefault(name, Counter())[row["trainer/global_step"], value] += 1
    return found


def in_csv(folder: Path) -> Points:
    """Return what the run's metrics.csv holds."""
    (path,) = folder.rglob("metrics.csv")
    found: Points = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name, cell in row.items():
                if cell and name != "step":
                    found.setdefault(name, Counter())[int(row["step"]), float(cell)] += 1
    return found
