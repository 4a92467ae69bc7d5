"""Run the model on one device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import nn

from lt_interface import (
    Accelerator,
    ClusterEnvironment,
    PlainCollectives,
    Plan,
    Problem,
    WholeModuleStrategy,
    World,
)

__all__ = ["SingleDeviceStrategy"]


class SingleDeviceStrategy(WholeModuleStrategy):
    """Whole model on one device of one process.

    Args:
        device: The device, or None for the one that the accelerator and ``devices=`` name.
    """

    name = "single_device"

    def __init__(self, device: torch.device | str | int | None = None) -> None:
        self._given = None if device is None else torch.device(device)
        self._accelerator: Accelerator | None = None
        self.device = self._given or torch.device("cpu")
        self.collectives = PlainCollectives()

    def problems(self, plan: Plan, module: nn.Module | None = None) -> Sequence[Problem]:
        """Refuse a plan of more than one process."""
        if plan.processes == 1:
            return []
        return [
            Problem(
                'Trainer(strategy="single_device")',
                "this strategy uses one device of one node",
                f"devices={len(plan.devices)}, num_nodes={plan.num_nodes}",
                'Write strategy="ddp", or leave it out.',
            )
        ]

    def setup(
        self, cluster: ClusterEnvironment | None, accelerator: Accelerator, devices: Sequence[int], plan: Plan
    ) -> World:
        """Choose and prepare the device; return a world of one."""
        self.device = self._given or accelerator.device(devices[0])
        accelerator.setup(self.device)
        self._accelerator = accelerator
        return World()

    def init_context(self, empty: bool | None = None) -> AbstractContextManager[Any]:
        """Return a context in which modules are constructed on the device.

        Args:
            empty: Whether to leave weights uninitialised, because they will be loaded.
        """
        stack = ExitStack()
        if self.device.type != "cpu":
            stack.enter_context(torch.device(self.device))
        if empty:
            from lt_core.builtin.empty import NoInit

            stack.enter_context(NoInit())
        return stack

    def leave(self, error: BaseException | None = None) -> None:
        """Give the device back."""
        if self._accelerator is not None:
            self._accelerator.teardown()
            self._accelerator = None
