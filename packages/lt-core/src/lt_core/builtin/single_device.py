"""Run the model on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lt_interface import (
    Accelerator,
    ClusterEnvironment,
    Engine,
    Plan,
    Precision,
    Problem,
    Stateful,
    StrategyVerbs,
    World,
)

__all__ = ["LocalCollectives", "SingleDeviceStrategy"]

T = TypeVar("T")


class LocalCollectives:
    """Exchange of a single rank: every call returns what it was given."""

    def reduce(self, tensor: Tensor, op: str = "mean", group: Any = "data") -> Tensor:
        """Return the tensor."""
        return tensor

    def all_gather(self, tensor: Tensor, group: Any = "data", sync_grads: bool = False) -> Tensor:
        """Return the tensor, without a new dimension."""
        return tensor

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        """Return the tensor."""
        return tensor

    def broadcast_object(self, obj: T, src: int = 0) -> T:
        """Return the object."""
        return obj

    def barrier(self, name: str = "", timeout: float = 0.0) -> None:
        """Return at once."""

    def any(self, flag: bool) -> bool:
        """Return the flag."""
        return flag

    def agree(self, bits: int) -> int:
        """Return the bits."""
        return bits


class SingleDeviceStrategy(StrategyVerbs):
    """Whole model on one device of one process.

    Args:
        device: The device, or None for the one that the accelerator and ``devices=`` name.
    """

    name = "single_device"
    default_launcher: str | None = None
    collective_forward = False
    mesh = None

    def __init__(self, device: torch.device | str | int | None = None) -> None:
        self._given = None if device is None else torch.device(device)
        self._accelerator: Accelerator | None = None
        self.device = self._given or torch.device("cpu")
        self.collectives = LocalCollectives()

    def problems(self, plan: Plan, module: nn.Module | None = None) -> Sequence[Problem]:
        """Refuse a plan of more than one process."""
        if plan.processes == 1:
            return []
        return [
            Problem(
                'Trainer(strategy="single_device")',
                "this strategy uses one device of one node",
                f"devices={len(plan.devices)}, num_nodes={plan.num_nodes}",
                'Set devices=1 and num_nodes=1, or strategy="ddp".',
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

    def shard(self, module: nn.Module, precision: Precision, loads_weights: bool) -> nn.Module:
        """Return the module in the precision's format and on the device."""
        from lt_core.builtin.empty import materialise

        materialise(module, self.device, loads_weights)
        return precision.convert(module).to(self.device)

    def engine(
        self,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        schedulers: Sequence[Any],
        precision: Precision,
        plan: Plan,
        default: Callable[..., Engine],
    ) -> Engine:
        """Return the plain engine."""
        return default(module, optimizers, schedulers, precision, plan)

    def weights(self, module: nn.Module) -> Stateful:
        """Return the module itself."""
        return module

    def checkpoint_io(self) -> str:
        """Return ``"safetensors"``."""
        return "safetensors"

    def release(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Move the module and the optimizers' states to the CPU."""
        if self.device.type == "cpu":
            return
        from lt_core.data.nested import move_to_device

        cpu = torch.device("cpu")
        for optimizer in optimizers:
            for parameter, state in optimizer.state.items():
                optimizer.state[parameter] = move_to_device(state, cpu)
        module.to(cpu)

    def leave(self, error: BaseException | None = None) -> None:
        """Give the device back."""
        if self._accelerator is not None:
            self._accelerator.teardown()
            self._accelerator = None
