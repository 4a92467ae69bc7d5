"""A long run's values are all in the tracker, to the last, once each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow_server import mlflow_server
from tracked_job import Net, batches, make_trainer
from tracker_reading import Points, due, in_csv, in_mlflow, in_tensorboard, in_wandb, rounded

from lt_core.loggers import CSVLogger
from lt_loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

STEPS, METRICS = 20_000, 10
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def train(logger: Any, folder: Path) -> Points:
    """Train, print the seconds, and return what was logged: every value of every step."""
    torch.manual_seed(0)
    trainer = make_trainer(logger, str(folder))
    begun = time.perf_counter()
    trainer.fit(Net(values=METRICS), batches(STEPS))
    print(f"\n{type(logger).__name__}: {STEPS} steps of {METRICS} metrics in {time.perf_counter() - begun:.1f} s")
    wanted = values(due(folder))
    assert sum(sum(points.values()) for points in wanted.values()) == STEPS * METRICS
    return wanted


def values(points: Points) -> Points:
    return {name: counts for name, counts in points.items() if name.startswith("value_")}


def test_csv(tmp_path: Path) -> None:
    """20,000 steps of 10 metrics are in the CSV file."""
    wanted = train(CSVLogger(tmp_path), tmp_path)
    assert values(in_csv(tmp_path)) == wanted


def test_tensorboard(tmp_path: Path) -> None:
    """20,000 steps of 10 metrics are in TensorBoard's files."""
    logger = TensorBoardLogger(tmp_path)
    wanted = train(logger, tmp_path)
    assert values(in_tensorboard(logger.log_dir)) == rounded(wanted)


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 steps of 10 metrics are in W&B's offline run."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    wanted = train(WandbLogger(save_dir=tmp_path, offline=True), tmp_path)
    assert in_wandb(tmp_path) == wanted


def test_mlflow_database(tmp_path: Path) -> None:
    """20,000 steps of 10 metrics are in MLflow's database."""
    uri = f"sqlite:///{tmp_path}/runs.db"
    logger = MLFlowLogger("long", tracking_uri=uri, save_dir=tmp_path)
    wanted = train(logger, tmp_path)
    assert values(in_mlflow(uri, str(logger.run_id))) == wanted


def test_mlflow_server(tmp_path: Path) -> None:
    """20,000 steps of 10 metrics are on MLflow's server."""
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server") as port:
        uri = f"http://127.0.0.1:{port}"
        logger = MLFlowLogger("long", tracking_uri=uri, save_dir=tmp_path)
        wanted = train(logger, tmp_path)
        assert values(in_mlflow(uri, str(logger.run_id))) == wanted
