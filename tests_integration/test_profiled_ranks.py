"""Two ranks under a profiler and the monitors: a report of each, and the training of one that is not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lt_accel.strategies.ddp import DDPStrategy
from lt_core.callbacks import DeviceStatsMonitor, ThroughputMonitor
from lt_core.loggers import CSVLogger
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.training import Job

JOB = Job(batches=6, epochs=2)


def on_two(job: Any) -> list[Any]:
    JOB.network().configure_optimizers()  # what ranks need is imported once, before they are forked
    return run_ranks(job, timeout=240.0)


def test_each_rank_writes_a_report(tmp_path: Path) -> None:
    """Of three profilers each writes a report and a verdict a rank, and the weights are those of a plain training."""
    from lt_core.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

    def train(rank: int) -> Any:
        torch.set_num_threads(1)
        found = []
        for kind in (None, SimpleProfiler, AdvancedProfiler, PyTorchProfiler):
            profiler = kind and kind(dirpath=tmp_path)
            trainer = JOB.trainer(2, strategy=DDPStrategy(), default_root_dir=tmp_path, profiler=profiler)
            module = JOB.network()
            trainer.fit(module, JOB.data(rank, 2), JOB.data(rank, 2)[:1])
            found.append([p.detach().tolist() for p in module.parameters()])
        return found

    first, second = on_two(train)
    assert first == second
    assert all(each == first[0] for each in first)
    for word in ("simple", "advanced", "pytorch"):
        for rank in (0, 1):
            verdict = json.loads((tmp_path / f"fit-{word}-{rank}.json").read_text(encoding="utf-8"))
            assert (verdict["rank"], verdict["facts"]["ranks"]) == (rank, 2)
            assert "Verdict: " in (tmp_path / f"fit-{word}-{rank}.txt").read_text(encoding="utf-8")
            if word == "pytorch":
                assert len(list(tmp_path.glob(f"fit-pytorch-{rank}.*.pt.trace.json"))) == 1


def test_monitors_of_two_ranks(tmp_path: Path) -> None:
    """Rates of all ranks together are twice those of a device, and one rank logs."""

    def train(rank: int) -> Any:
        torch.set_num_threads(1)
        monitors = [ThroughputMonitor(lambda batch: len(batch[0])), DeviceStatsMonitor()]
        trainer = JOB.trainer(
            2,
            strategy=DDPStrategy(),
            default_root_dir=tmp_path,
            callbacks=monitors,
            logger=CSVLogger(tmp_path),
            log_every_n_steps=2,
        )
        trainer.fit(JOB.network(), JOB.data(rank, 2), JOB.data(rank, 2)[:1])
        return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}

    for found in on_two(train):
        rate = found["train/device/samples_per_sec"]
        assert found["train/samples_per_sec"] == pytest.approx(2 * rate)
        assert found["train/flops_per_sec"] == pytest.approx(2 * found["train/device/flops_per_sec"])
    [rows] = tmp_path.rglob("metrics.csv")
    assert "DeviceStatsMonitor.on_train_batch_end/cpu_percent" in rows.read_text(encoding="utf-8")
