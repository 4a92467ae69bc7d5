"""A long run's values are all in the tracker, to the last, once each."""

from __future__ import annotations

import time
from collections.abc import Callable
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


def check(
    logger: Any, folder: Path, read: Callable[[], Points], kept: Callable[[Points], Points] = lambda p: p
) -> None:
    """Train, print the seconds, and compare every value that the tracker has with those that were logged."""
    torch.manual_seed(0)
    trainer = make_trainer(logger, str(folder))
    begun = time.perf_counter()
    trainer.fit(Net(values=METRICS), batches(STEPS))
    took = time.perf_counter() - begun
    wanted = {name: points for name, points in due(folder).items() if name.startswith("value_")}
    assert sum(sum(points.values()) for points in wanted.values()) == STEPS * METRICS
    found = {name: points for name, points in read().items() if name.startswith("value_")}
    print(f"\n{type(logger).__name__}: {STEPS} steps of {METRICS} metrics in {took:.1f} s")
    assert found == kept(wanted)


def test_csv(tmp_path: Path) -> None:
    """20,000 steps of 10 metrics are in the CSV file."""
    check(CSVLogger(tmp_path), tmp_path, lambda: in_csv(tmp_path))


def test_tensorboard(tmp_path: Path) -> None:
    """20,000 steps of 10 metrics are in TensorBoard's files."""
    logger = TensorBoardLogger(tmp_path)
    check(logger, tmp_path, lambda: in_tensorboard(logger.log_dir), rounded)


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 steps of 10 metrics are in W&B's offline run."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    check(WandbLogger(save_dir=tmp_path, offline=True), tmp_path, lambda: in_wandb(tmp_path))


def test_mlflow_database(tmp_path: Path) -> None:
    """20,000 steps of 10 metrics are in MLflow's database."""
    uri = f"sqlite:///{tmp_path}/runs.db"
    logger = MLFlowLogger("long", tracking_uri=uri, save_dir=tmp_path)
    check(logger, tmp_path, lambda: in_mlflow(uri, str(logger.run_id)))


def test_mlflow_server(tmp_path: Path) -> None:
    """20,000 steps of 10 metrics are on MLflow's server."""
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server") as port:
        uri = f"http://127.0.0.1:{port}"
        logger = MLFlowLogger("long", tracking_uri=uri, save_dir=tmp_path)
        check(logger, tmp_path, lambda: in_mlflow(uri, str(logger.run_id)))
