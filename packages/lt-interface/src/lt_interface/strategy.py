"""Strategies: how a model is spread over processes, and how those exchange values."""

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
    """Exchange of values between ranks. With one rank each call returns its input.

    Every rank of the group must make the same calls in the same order; each call waits for the others.

    Example:
        The exchange of a single rank:

        >>> class Alone:
        ...     def reduce(self, tensor, op="mean", group="data"):
        ...         return tensor
        ...     def all_gather(self, tensor, group="data", sync_grads=False):
        ...         return tensor
        ...     def broadcast(self, tensor, src=0):
        ...         return tensor
        ...     def broadcast_object(self, obj, src=0):
        ...         return obj
        ...     def barrier(self, name="", timeout=None):
        ...         pass
        ...     def any(self, flag):
        ...         return flag
        >>> isinstance(Alone(), Collectives)
        True
    """

    def reduce(self, tensor: Tensor, op: str = "mean", group: str = "data") -> Tensor:
        """Return the reduction of a tensor over all ranks.

        The core calls it for logged values with ``sync_dist=True``, one tensor for many values.

        Args:
            tensor: A tensor of the same shape and format on every rank, on the strategy's device; it stays as it is.
            op: ``"mean"``, ``"sum"``, ``"min"`` or ``"max"``.
            group: ``"data"`` for the ranks that receive different samples, or a process group that the user gave.

        Returns:
            A tensor of the same shape, the same on every rank.
        """
        ...

    def all_gather(self, tensor: Tensor, group: str = "data", sync_grads: bool = False) -> Tensor:
        """Return the ranks' tensors, stacked.

        The core calls it for the user's ``self.all_gather``.

        Args:
            tensor: A tensor of the same shape and format on every rank, on the strategy's device.
            group: ``"data"`` for the ranks that receive different samples, or a process group that the user gave.
            sync_grads: Whether gradients flow back to the ranks they came from.

        Returns:
            With several ranks a tensor ``(ranks, *tensor.shape)``; with one the tensor itself.
        """
        ...

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        """Return one rank's tensor on every rank.

        Args:
            tensor: The tensor to send; on the other ranks one of the same shape and format.
            src: The rank that sends.
        """
        ...

    def broadcast_object(self, obj: T, src: int = 0) -> T:
        """Return one rank's object on every rank; the core shares seeds, paths and decisions with it.

        Args:
            obj: The object to send, picklable; what the other ranks give is ignored.
            src: The rank that sends.
        """
        ...

    def barrier(self, name: str = "", timeout: float | None = None) -> None:
        """Wait for every rank.

        Args:
            name: What is waited for, for messages.
            timeout: Seconds until it is an error; None for the default of the backend.
        """
        ...

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set on any rank: the core agrees on stops and saves with it.

        Args:
            flag: This rank's flag.
        """
        ...


@runtime_checkable
class Strategy(Protocol):
    """Placement of a module on devices and ranks, with the engine that steps it.

    The core calls ``problems`` in the parent process, then in each rank, once for each call of the trainer:
    ``setup``, ``init_context`` around the module's ``configure_model``, ``shard``, ``engine`` after the optimizers
    are configured, ``teardown``. After ``teardown`` the next call sets the same object up again.

    Attributes:
        name: The name users pass.
        default_launcher: Name of the launcher, or None to run in this process.
        collective_forward: Whether every rank must run forward equally often.
        device: The device of this rank, after ``setup``.
        collectives: The exchange between ranks, after ``setup``.

    Example:
        All in one process, on the accelerator's first device:

        >>> from contextlib import nullcontext
        >>> from lt_interface.errors import Problem
        >>> class OneDevice:
        ...     name, default_launcher, collective_forward = "one_device", None, False
        ...     device, collectives = None, None
        ...     def problems(self, plan):
        ...         if len(plan.devices) * plan.num_nodes == 1:
        ...             return []
        ...         return [Problem('Trainer(strategy="one_device")', "it uses one device", fix="Write devices=1.")]
        ...     def setup(self, cluster, accelerator, devices, plan):
        ...         self.accelerator, self.device = accelerator, accelerator.device(devices[0])
        ...         accelerator.setup(self.device)
        ...         self.collectives = Alone()
        ...         return World()
        ...     def init_context(self, empty=None):
        ...         return nullcontext()
        ...     def shard(self, module, precision, loads_weights):
        ...         return precision.convert(module).to(self.device)
        ...     def engine(self, module, optimizers, schedulers, precision, plan, default):
        ...         return default(module, optimizers, schedulers, precision, plan)
        ...     def checkpoint_io(self):
        ...         return "safetensors"
        ...     def teardown(self, error=None):
        ...         self.accelerator.teardown()
        >>> strategy = OneDevice()
        >>> isinstance(strategy, Strategy)
        True
        >>> str(strategy.problems(Plan(devices=(0, 1)))[0])
        'Trainer(strategy="one_device"): it uses one device. Write devices=1.'
    """

    name: str
    default_launcher: str | None
    collective_forward: bool
    device: torch.device
    collectives: Collectives

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Return what of a plan this strategy cannot do; it touches no device.

        Args:
            plan: What was decided.

        Returns:
            The problems, all at once: the core raises them together with those of the flags. Empty if there is none.
        """
        ...

    def setup(
        self, cluster: ClusterEnvironment | None, accelerator: Accelerator, devices: Sequence[int], plan: Plan
    ) -> World:
        """Join the other ranks and set up this rank's device; ``device`` and ``collectives`` are valid from then on.

        Args:
            cluster: The cluster environment that the user gave, or None.
            accelerator: The kind of device; its ``setup`` is called here, once.
            devices: Indices of the devices of this node, at least one.
            plan: What was decided.

        Returns:
            The place of this process among its peers.
        """
        ...

    def init_context(self, empty: bool | None = None) -> AbstractContextManager[Any]:
        """Return a context in which modules are constructed on the right device; it leaves no trace.

        Args:
            empty: True leaves weights without values, because they will be loaded; None or False fills them.
        """
        ...

    def shard(self, module: nn.Module, precision: Precision, loads_weights: bool) -> nn.Module:
        """Convert, parallelise, materialise and move a module; its parameters are final afterwards.

        The core calls it once, before optimizers are configured and before weights of a checkpoint are loaded.

        Args:
            module: The user's module, on the CPU, the device or the meta device.
            precision: The precision; ``precision.convert`` is called here.
            loads_weights: Whether weights are loaded next, so that values need not be made here.

        Returns:
            The module with its own names of parameters, ready for an optimizer.

        Raises:
            MisconfigurationException: If a part on the meta device cannot get values and no weights are loaded.
        """
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
        """Build the engine that steps a module.

        The core calls it after ``shard``, and again when the user exchanges optimizers or ``training_step``.

        Args:
            module: What ``shard`` returned.
            optimizers: The optimizers over its parameters, in the user's order; empty outside of a fit.
            schedulers: The learning-rate schedulers; the core steps them unless the engine owns ``"schedule"``.
            precision: The precision, as in ``shard``.
            plan: What was decided.
            default: Builds a plain engine of one process from the same arguments, itself left out.

        Returns:
            The engine.
        """
        ...

    def checkpoint_io(self) -> str:
        """Return the name of the checkpoint format that fits this strategy."""
        ...

    def teardown(self, error: BaseException | None = None) -> None:
        """Leave the other ranks and tear the accelerator down; a second call does nothing.

        Args:
            error: What ended the run, or None; after an error other ranks must not be waited for.
        """
        ...
