"""Train one model in several processes that average their gradients."""

from __future__ import annotations

from typing import Any

from lt_accel.strategies.ddp import DDPStrategy
from lt_interface.testing import StrategyConformance


class TestDDPStrategy(StrategyConformance):
    def make(self) -> Any:
        return DDPStrategy()
