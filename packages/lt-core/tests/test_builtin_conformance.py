"""The built-in plugins keep the interface's rules."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lt_core.builtin.cpu import CPUAccelerator
from lt_core.builtin.engine import PlainEngine
from lt_core.builtin.precision import FullPrecision
from lt_core.builtin.single_device import SingleDeviceStrategy
from lt_core.checkpoint import AsyncCheckpointIO, TorchCheckpointIO
from lt_interface import Accelerator, Engine, Logger, Precision
from lt_interface.testing import (
    AcceleratorConformance,
    CheckpointIOConformance,
    CollectivesConformance,
    LauncherConformance,
    LoggerConformance,
    PrecisionConformance,
    StrategyConformance,
)


class TestCPUAccelerator(AcceleratorConformance):
    plugin = "cpu"


class TestSingleDeviceStrategy(StrategyConformance):
    plugin = "single_device"

    def make_accelerator(self) -> Accelerator:
        return CPUAccelerator()

    def make_precision(self) -> Precision:
        return FullPrecision()

    def default_engine(self) -> Callable[..., Engine]:
        return PlainEngine


class TestSingleDeviceStrategyWithoutCore(StrategyConformance):
    """The suite's own counterparts suffice, as for a plugin whose tests have no core."""

    plugin = "single_device"


class TestInProcessLauncher(LauncherConformance):
    plugin = "in_process"


class TestSingleDeviceCollectives(CollectivesConformance):
    """The exchange of the built-in strategy, which has one rank."""

    sizes = (1,)

    def make(self) -> Any:
        return SingleDeviceStrategy().collectives


class TestFullPrecision(PrecisionConformance):
    plugin = "32-true"
    parameter_dtype = "float32"


class TestDoublePrecision(PrecisionConformance):
    plugin = "64-true"
    parameter_dtype = "float64"
    tolerance = 1e-12


class TestHalfPrecision(PrecisionConformance):
    plugin = "16-true"
    parameter_dtype = "float16"
    tolerance = 2e-2


class TestBFloat16Precision(PrecisionConformance):
    plugin = "bf16-true"
    parameter_dtype = "bfloat16"
    tolerance = 5e-2


class TestSafetensorsIO(CheckpointIOConformance):
    plugin = "safetensors"


class TestAsyncCheckpointIO(CheckpointIOConformance):
    plugin = "async"


class TestTorchCheckpointIO(CheckpointIOConformance):
    def make(self) -> Any:
        return TorchCheckpointIO()


class TestAsyncTorchCheckpointIO(CheckpointIOConformance):
    """The background store over the one that keeps objects."""

    def make(self) -> Any:
        return AsyncCheckpointIO(TorchCheckpointIO())


class TestCSVLogger(LoggerConformance):
    plugin = "csv"

    def read(self, logger: Logger) -> dict[str, dict[int, float]]:
        assert logger.directory is not None
        found: dict[str, dict[int, float]] = {}
        with open(Path(logger.directory) / "metrics.csv", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                step = row.pop("step")
                for name, value in row.items():
                    if value:
                        points = found.setdefault(name, {})
                        assert int(step or 0) not in points, f"{name}: a step twice"
                        points[int(step or 0)] = float(value)
        return found
