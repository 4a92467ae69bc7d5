"""The built-in plugins keep the interface's rules."""

from __future__ import annotations

from collections.abc import Callable

from lt_core.builtin.cpu import CPUAccelerator
from lt_core.builtin.engine import PlainEngine
from lt_core.builtin.precision import FullPrecision
from lt_interface import Accelerator, Engine, Precision
from lt_interface.testing import (
    AcceleratorConformance,
    CheckpointIOConformance,
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
