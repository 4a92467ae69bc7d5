"""Monitors of throughput and of devices: what they log, and that they go on where a run was cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import SILENT
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lt_core import LightningModule, Trainer
from lt_core.callbacks import DeviceStatsMonitor, ModelCheckpoint, ThroughputMonitor
from lt_core.loggers import Logger
from lt_core.utilities.throughput import Throughput, get_available_flops
from lt_interface import ConfigError, MisconfigurationException


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave what runs write out of the working folder."""
    monkeypatch.chdir(tmp_path)


class Memory(Logger):
    """Logger that keeps what is logged."""

    name, version = "memory", "0"

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.logged.append((step, dict(metrics)))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        return None

    def values(self, key: str) -> list[tuple[int | None, float]]:
        return [(step, metrics[key]) for step, metrics in self.logged if key in metrics]


class Net(LightningModule):
    """Module of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).square().mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.layer(batch)

    test_step = validation_step

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        found: Tensor = self.layer(batch)
        return found

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data(batches: int = 6) -> DataLoader[Tensor]:
    return DataLoader(torch.randn(batches * 2, 8), 2)  # type: ignore[arg-type]


def trainer_of(callback: Any, logger: Any, **flags: Any) -> Trainer:
    chosen = {**SILENT, "max_epochs": 1, "log_every_n_steps": 2, "num_sanity_val_steps": 1, **flags}
    chosen.setdefault("enable_checkpointing", False)
    callbacks = [callback, *chosen.pop("callbacks", [])]
    return Trainer(**chosen, callbacks=callbacks, logger=logger)


def test_rates_of_a_window() -> None:
    """Rates are those of the newest entries; with several devices those of all are given, too."""
    throughput = Throughput(available_flops=100.0, world_size=2, window_size=3, separator=".")
    for i in range(1, 6):
        throughput.update(time=float(i * i), batches=i, samples=4 * i, lengths=10 * i, flops=80)
    found = throughput.compute()  # times 9, 16, 25
    assert (found["time"], found["batches"], found["samples"], found["lengths"]) == (25, 5, 20, 50)
    rates = {"batches": 2 / 16, "samples": 8 / 16, "items": 20 / 16, "flops": 160 / 16}
    for name, rate in rates.items():
        assert (found[f"device.{name}_per_sec"], found[f"{name}_per_sec"]) == (rate, 2 * rate)
    assert found["device.mfu"] == rates["flops"] / 100
    throughput.reset()
    assert throughput.compute() == {}


def test_throughput_refuses() -> None:
    """A window of one entry has no rate, and counts do not fall."""
    with pytest.raises(ConfigError, match="window_size=1"):
        Throughput(window_size=1)
    throughput = Throughput()
    throughput.update(time=2.0, batches=2, samples=2)
    with pytest.raises(ValueError, match="samples counts from the beginning"):
        throughput.update(time=3.0, batches=3, samples=1)


@pytest.mark.parametrize(
    ("card", "dtype", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.4),
        ("NVIDIA H100 PCIe", torch.float16, 756.0),
        ("NVIDIA A100-SXM4-40GB", torch.float32, 19.5),
        ("Tesla T4", torch.float16, 65.0),
        ("NVIDIA L40S", torch.bfloat16, 362.0),
        ("NVIDIA L4", torch.bfloat16, 121.0),
        ("NVIDIA A10G", torch.bfloat16, 70.0),
        ("Tesla V100-SXM2-16GB", torch.bfloat16, 125.0),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, 165.2),
        ("Quadro of somebody", torch.bfloat16, None),
        ("NVIDIA A100-SXM4-40GB", torch.int8, None),
    ],
)
def test_peaks_of_known_cards(monkeypatch: pytest.MonkeyPatch, card: str, dtype: torch.dtype, tera: Any) -> None:
    """A card is known by its name as CUDA gives it; of others nothing is claimed."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
    found = get_available_flops(torch.device("cuda", 0), dtype)
    assert found == (None if tera is None else tera * 1e12)


def test_a_training_is_measured() -> None:
    """Rates, counts and operations are logged at logged steps: of a Linear 3 x 2 operations a weight and sample."""
    logger, monitor = Memory(), ThroughputMonitor(len, length_fn=torch.numel, available_flops=1e12)
    trainer = trainer_of(monitor, logger)
    trainer.fit(Net(), data(), data(2))
    assert logger.values("train/batches") == [(1, 2), (3, 4), (5, 6)]
    assert [value for _, value in logger.values("train/samples")] == [4, 8, 12]
    assert [value for _, value in logger.values("train/lengths")] == [32, 64, 96]
    assert monitor.flops_per_batch == 2 * (2 * 2 * 8 * 4)  # forward and weights; the input needs no gradient
    last = {name: value for _, metrics in logger.logged for name, value in metrics.items()}
    assert last["train/device/mfu"] == pytest.approx(last["train/device/flops_per_sec"] / 1e12)
    ratio = last["train/device/items_per_sec"] / last["train/device/samples_per_sec"]
    assert (ratio, last["validate/samples"]) == (pytest.approx(8), 4)
    assert "train/samples_per_sec" not in last  # of all ranks
    assert float(trainer.callback_metrics["train/samples"]) == 12


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_evaluation_is_measured(stage: str) -> None:
    """Each evaluation logs at its end how fast it was."""
    logger = Memory()
    trainer = trainer_of(ThroughputMonitor(len, separator="-"), logger)
    getattr(trainer, stage)(Net(), data())
    [(_, samples)] = logger.values(f"{stage}-samples")
    [(_, rate)] = logger.values(f"{stage}-device-samples_per_sec")
    assert (samples, rate > 0) == (12, True)


def test_own_operations_count() -> None:
    """What the module says of its operations is taken, and nothing is counted."""

    class Own(Net):
        flops_per_batch = 7

    monitor = ThroughputMonitor(len)
    trainer_of(monitor, Memory()).fit(Own(), data(), data(1))
    assert monitor.flops_per_batch == 7


def test_counting_changes_no_weight() -> None:
    """A training that is measured ends at the weights of one that is not."""
    ends = []
    for callbacks in ([ThroughputMonitor(len), DeviceStatsMonitor()], []):
        torch.manual_seed(0)
        module, batches = Net(), data()
        trainer = trainer_of(ModelCheckpoint(save_top_k=0), Memory(), callbacks=callbacks, enable_checkpointing=True)
        trainer.fit(module, batches, data(1))
        ends.append(module.layer.weight.detach())
    assert torch.equal(*ends)


def test_a_resumed_training_goes_on(tmp_path: Path) -> None:
    """Counts and time go on where a run was cut in mid-epoch, and the weights are those of a run that was not."""
    found = []
    for folder, cut in ((tmp_path / "whole", False), (tmp_path / "cut", True)):
        torch.manual_seed(0)
        module, batches, logger = Net(), data(), Memory()
        for path in (None, folder / "last.ckpt") if cut else (None,):
            saves = ModelCheckpoint(dirpath=folder, save_last=True, every_n_train_steps=3, save_top_k=0)
            monitors = [ThroughputMonitor(len), DeviceStatsMonitor(), saves]
            flags = {"enable_checkpointing": True, "max_steps": 3 if cut and path is None else -1, "max_epochs": 2}
            trainer = trainer_of(monitors[0], logger, callbacks=monitors[1:], **flags)
            trainer.fit(module, batches, data(1), ckpt_path=path)
        times = [value for _, value in logger.values("train/time")]
        assert times == sorted(times)
        found.append((dict(logger.values("train/samples")), module.layer.weight.tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("given", [{"batch_size_fn": 5}, {"batch_size_fn": len, "length_fn": "len"}])
def test_throughput_monitor_refuses(given: Any) -> None:
    """What is no function of a batch is refused where it is written."""
    with pytest.raises(ConfigError, match="must be a function of a batch"):
        ThroughputMonitor(**given)


@pytest.mark.parametrize("returned", [None, 1.5, "two", -1])
def test_a_size_is_a_whole_number(returned: Any) -> None:
    """A function that returns no count of samples is named with what it returned."""
    with pytest.raises(MisconfigurationException, match=r"batch_size_fn=\.\.\.\): it must return a whole number"):
        trainer_of(ThroughputMonitor(lambda batch: returned), Memory()).fit(Net(), data(), data(1))


CPU = ["cpu_percent", "cpu_swap_percent", "cpu_vm_percent"]


def test_the_device_is_logged_around_batches() -> None:
    """Before and after each logged step, the processor's figures are logged where it is the device."""
    logger = Memory()
    trainer_of(DeviceStatsMonitor(), logger).fit(Net(), data(), data(2))
    for hook in ("on_train_batch_start", "on_train_batch_end"):
        for name in CPU:
            values = logger.values(f"DeviceStatsMonitor.{hook}/{name}")
            assert [step for step, _ in values] == [1, 3, 5]
            assert all(0 <= value <= 100 for _, value in values)
        assert logger.values(f"DeviceStatsMonitor.{hook}/process_cpu_seconds")
    assert len(logger.values("DeviceStatsMonitor.on_validation_batch_end/cpu_percent")) == 1


def test_figures_can_be_chosen() -> None:
    """filter_keys leaves the others out, and cpu_stats=False all of a processor."""
    logger = Memory()
    trainer_of(DeviceStatsMonitor(cpu_stats=True, filter_keys="cpu_percent"), logger).fit(Net(), data(), data(1))
    names = {name for _, metrics in logger.logged for name in metrics} - {"epoch"}
    assert names == {f"DeviceStatsMonitor.on_train_batch_{when}/cpu_percent" for when in ("start", "end")}
    logger = Memory()
    trainer_of(DeviceStatsMonitor(cpu_stats=False), logger).fit(Net(), data(), data(1))
    assert not any("Device" in name for _, metrics in logger.logged for name in metrics)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_the_device_is_logged_in_evaluation(stage: str) -> None:
    """Each evaluation logs the figures at every log_every_n_steps-th batch."""
    logger = Memory()
    getattr(trainer_of(DeviceStatsMonitor(), logger), stage)(Net(), data())
    hook = {"validate": "validation"}.get(stage, stage)
    assert len(logger.values(f"DeviceStatsMonitor.on_{hook}_batch_start/cpu_percent")) == 3


def test_device_stats_need_a_logger() -> None:
    """Without a logger there is nothing to log to: an error before anything runs."""
    with pytest.raises(MisconfigurationException, match="DeviceStatsMonitor needs a logger"):
        trainer_of(DeviceStatsMonitor(), False).fit(Net(), data(), data(1))
