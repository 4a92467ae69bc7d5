"""Say how a model is spread over processes, and how those talk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from lt_interface.plan import Plan
from lt_interface.world import World

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from lt_interface.accelerator import Accelerator
    from lt_interface.cluster import ClusterEnvironment
    from lt_interface.engine import Engine
    from lt_interface.errors import Problem
    from lt_interface.precision import Precision

__all__ = ["Collectives", "Strategy"]

T = TypeVar("T")


@runtime_checkable
class Collectives(Protocol):
    """Exchange values between ranks. With one rank each call returns its input."""

    def reduce(self, tensor: Tensor, op: str = "mean", group: str = "data") -> Tensor:
        """Return the reduction over all ranks; ``op`` is mean, sum, min or max."""
        ...

    def all_gather(self, tensor: Tensor, group: str = "data", sync_grads: bool = False) -> Tensor:
        """Return the ranks' tensors stacked along a new first dimension; of one rank, the tensor."""
        ...

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        """Return rank ``src``'s tensor on every rank."""
        ...

    def broadcast_object(self, obj: T, src: int = 0) -> T:
        """Return rank ``src``'s picklable object on every rank."""
        ...

    def barrier(self, name: str = "", timeout: float | None = None) -> None:
        """Wait for every rank; ``timeout`` is in seconds."""
        ...

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        ...


@runtime_checkable
class Strategy(Protocol):
    """Place the module on its devices and build the engine that steps it.

    Attributes:
        name: The name users pass.
        default_launcher: Name of the launcher, or None to run in this process.
        collective_forward: Whether every rank must run forward equally often.
        device: The device of this rank, after ``setup``.
        collectives: The exchange between ranks, after ``setup``.
    """

    name: str
    default_launcher: str | None
    collective_forward: bool
    device: torch.device
    collectives: Collectives

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Return what of the plan this strategy can not do; touches no device."""
        ...

    def setup(
        self, cluster: ClusterEnvironment | None, accelerator: Accelerator, devices: Sequence[int], plan: Plan
    ) -> World:
        """Join the other ranks, set up the accelerator's device, and return who this one is."""
        ...

    def init_context(self, empty: bool | None = None) -> AbstractContextManager[Any]:
        """Return a context in which modules are constructed on the right device."""
        ...

    def shard(self, module: nn.Module, precision: Precision, loads_weights: bool) -> nn.Module:
        """Convert, parallelise, materialise and move the module; its parameters are final after it."""
        ...

    def engine(
        self,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        schedulers: Sequence[Any],
        precision: Precision,
        plan: Plan,
        default: Callable[..., Engine],
    ) -> Engine:
        """Return the engine; ``default`` takes the same arguments (without itself) and builds a plain one."""
        ...

    def checkpoint_io(self) -> str:
        """Return the name of the checkpoint format that fits this strategy."""
        ...

    def teardown(self, error: BaseException | None = None) -> None:
        """Leave the other ranks and tear the accelerator down; ``error`` is what ended the run."""
        ...
