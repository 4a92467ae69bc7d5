"""A disk that is full for a while costs no value: not in the journal, not in the tracker."""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow_server import mlflow_server
from tracked_job import Net, batches, make_trainer
from tracker_reading import due, in_csv, in_mlflow, in_tensorboard, in_wandb, rounded

from lt_core.loggers import CSVLogger
from lt_core.tracking import sender as delivery_module
from lt_loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

STEPS = 300
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of four megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def train_over_a_full_disk(logger: Any, disk: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Train; fill the disk after a tenth of the run, and make room again after six tenths; return the warnings."""
    monkeypatch.setattr(delivery_module, "FIRST_RETRY_SECONDS", 0.1)
    torch.manual_seed(0)
    trainer = make_trainer(logger, str(disk))
    filler = disk / "filler"

    def at(step: int) -> None:
        if step == STEPS // 10:
            with open(filler, "wb", buffering=0) as file:
                for size in (1 << 16, 1 << 12, 1 << 8, 1):
                    while _writes(file, size):
                        pass
        if step == 6 * STEPS // 10:
            filler.unlink()

    trainer.on("train_batch_end")(lambda *_: at(trainer.global_step))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer.fit(Net(0.01), batches(STEPS))
    assert trainer.global_step == STEPS
    return [str(w.message) for w in warned]


def _writes(file: Any, size: int) -> bool:
    try:
        return bool(file.write(b"x" * size) == size)
    except OSError:
        return False


def values(points: Any) -> Any:
    return {name: counts for name, counts in points.items() if name.startswith("value_")}


def test_mlflow(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's server, which has its own disk, gets every value."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server") as port:
        uri = f"http://127.0.0.1:{port}"
        logger = MLFlowLogger("disk", tracking_uri=uri, save_dir=disk)
        warned = train_over_a_full_disk(logger, disk, monkeypatch)
        assert [m for m in warned if "No space left" in m]
        wanted = values(due(disk))
        assert len(wanted["value_9"]) == STEPS
        assert values(in_mlflow(uri, str(logger.run_id))) == wanted


@pytest.mark.parametrize("kind", ["csv", "tensorboard"])
def test_files_on_the_full_disk(kind: str, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files on the full disk itself are complete in the end, each value once."""
    logger: Any = CSVLogger(disk) if kind == "csv" else TensorBoardLogger(disk, max_queue=1)
    warned = train_over_a_full_disk(logger, disk, monkeypatch)
    assert [m for m in warned if "No space left" in m]
    wanted = values(due(disk))
    assert len(wanted["value_9"]) == STEPS
    found = in_csv(disk) if kind == "csv" else in_tensorboard(str(logger.log_dir))
    assert values(found) == (wanted if kind == "csv" else rounded(wanted))


def test_wandb(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's transaction logs on the full disk are complete in the end, each value once."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=disk, offline=True, flush_timeout=2)
    warned = train_over_a_full_disk(logger, disk, monkeypatch)
    assert [m for m in warned if "logging failed" in m]
    wanted = values(due(disk))
    assert len(wanted["value_9"]) == STEPS
    assert values(in_wandb(disk)) == wanted
