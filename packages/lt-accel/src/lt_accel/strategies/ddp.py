"""Data parallelism: every rank holds the whole model, sees its own share of the data, and averages gradients.

The engine drives torch's reducer, the machine inside ``DistributedDataParallel``, and not that module itself. So the
user's step is called as it is, with no frame between; a backward pass inside ``training_step`` (manual optimization)
is exchanged like any other; and nothing of the module's names changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from lt_accel.collectives import ProcessGroupCollectives
from lt_accel.group import join, leave, world_of
from lt_accel.metric_states import let_gather, take_back
from lt_accel.peers import Peers
from lt_interface import (
    Accelerator,
    ClusterEnvironment,
    Collectives,
    ConfigError,
    Engine,
    MisconfigurationException,
    PlainCollectives,
    Plan,
    Precision,
    Problem,
    Stateful,
    WholeModuleStrategy,
    World,
)

__all__ = ["DDPEngine", "DDPStrategy"]

_MB = 1 << 20
# By start method: the strategy's name and the launcher.
_LAUNCHERS = {
    "popen": ("ddp", "subprocess"),
    "spawn": ("ddp_spawn", "spawn"),
    "fork": ("ddp_fork", "fork"),
}
_torch: Any = dist  # whose stubs leave the reducer out


class DDPStrategy(WholeModuleStrategy):
    """Whole model on every rank, gradients averaged once a window.

    Args:
        find_unused_parameters: Look, after each forward pass, for parameters that the loss does not depend on. Needed
            where that changes from batch to batch. With several optimizers they are looked for in any case, since each
            one's loss depends on a part of them.
        gradient_as_bucket_view: Let gradients be views of what is exchanged, which saves their memory once.
        bucket_cap_mb: Size of one exchange, in MB.
        timeout: How long a collective waits for the other ranks.
        start_method: What starts the ranks where no scheduler has: ``"popen"`` runs the script again, ``"spawn"``
            starts new interpreters, ``"fork"`` forks this process.
    """

    def __init__(
        self,
        find_unused_parameters: bool = False,
        gradient_as_bucket_view: bool = False,
        bucket_cap_mb: int = 25,
        timeout: timedelta = timedelta(minutes=30),
        start_method: str = "popen",
    ) -> None:
        if start_method not in _LAUNCHERS:
            rule = f"it must be one of {', '.join(map(repr, _LAUNCHERS))}"
            raise ConfigError(Problem("DDPStrategy(start_method)", rule, repr(start_method)))
        self.name, self.default_launcher = _LAUNCHERS[start_method]
        self.find_unused_parameters = find_unused_parameters
        self.gradient_as_bucket_view = gradient_as_bucket_view
        self.bucket_cap_mb = bucket_cap_mb
        self.timeout = timeout
        self.device = torch.device("cpu")
        self.collectives: Collectives = PlainCollectives()
        self.world = World()
        self._accelerator: Accelerator | None = None
        self._peers: Peers | None = None
        self._metrics: list[Any] = []

    def problems(self, plan: Plan, module: nn.Module | None = None) -> Sequence[Problem]:
        """Refuse shared batch statistics, which are not built yet."""
        if not plan.sync_batchnorm or plan.processes == 1:
            return []
        rule = "batch statistics are not shared between ranks yet"
        return [Problem("Trainer(sync_batchnorm=True)", rule, f'strategy="{self.name}"', "Leave it out.")]

    def setup(
        self, cluster: ClusterEnvironment | None, accelerator: Accelerator, devices: Sequence[int], plan: Plan
    ) -> World:
        """Join the other ranks, or stay alone where the environment knows of none; take this rank's device.

        Raises:
            MisconfigurationException: If there are fewer or more ranks than the plan has.
        """
        world = world_of(cluster)
        if world.size != max(plan.processes, 1):
            raise MisconfigurationException(
                Problem(
                    f'Trainer(strategy="{self.name}")',
                    f"there must be as many ranks as devices, {plan.processes}",
                    f"WORLD_SIZE={world.size}",
                    f"Start the script with torchrun --nproc-per-node {len(plan.devices)}, or set devices=.",
                )
            )
        self.device = accelerator.device(devices[world.local_rank % len(devices)])
        accelerator.setup(self.device)
        self._accelerator, self.world = accelerator, world
        if world.size == 1:
            self.collectives = PlainCollectives()
        else:
            self._peers = join(world, cluster, self.timeout)
            self.collectives = ProcessGroupCollectives(self._peers)
        return world

    def init_context(self, empty: bool | None = None) -> AbstractContextManager[Any]:
        """Return a context in which modules are constructed on the device; weights are filled in any case."""
        return nullcontext() if self.device.type == "cpu" else torch.device(self.device)

    def shard(self, module: nn.Module, precision: Precision, loads_weights: bool) -> nn.Module:
        """Return the module in the precision's format, on the device, with rank 0's values on every rank.

        Raises:
            MisconfigurationException: If the ranks' modules have other parameters or buffers.
        """
        module = super().shard(module, precision, loads_weights)
        if self.world.size > 1:
            tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            _check_same(type(module).__name__, tensors, self.collectives)
            copy_from_first(tensors.values())
            self._metrics = let_gather(module.modules())
        return module

    def engine(
        self,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        schedulers: Sequence[Any],
        precision: Precision,
        plan: Plan,
        default: Callable[..., Engine],
    ) -> Engine:
        """Return the plain engine, with an exchange of gradients around its backward pass where ranks are several."""
        inner = default(module, optimizers, schedulers, precision, plan)
        if self.world.size == 1 or not optimizers:
            return inner
        return DDPEngine(inner, module, self)

    def mark(self) -> None:
        """Count a backward pass that exchanges gradients, for ranks that wait elsewhere meanwhile."""
        if self._peers is not None:
            self._peers.mark()

    def report(self, where: str, error: BaseException) -> BaseException:
        """Report this rank's error to the others; return it, or one that names the rank from whose error it follows."""
        return error if self._peers is None else self._peers.fail(where, error)

    def leave(self, error: BaseException | None = None) -> None:
        """Keep the process group for the next call; after an error leave it, without waiting for anybody."""
        if self._accelerator is None:
            return
        self._accelerator.teardown()
        self._accelerator = self._peers = None
        take_back(self._metrics)
        self._metrics = []
        if not isinstance(self.collectives, ProcessGroupCollectives):
            return
        if error is None:
            self.collectives.settle()
        else:
            self.collectives.close()
            leave()


class DDPEngine:
    """Engine that averages the gradients of a window over the ranks, in its last backward pass.

    Args:
        inner: The plain engine; what is not about the exchange is its own method.
        module: The module, the same on every rank.
        strategy: The strategy, for its options.
    """

    def __init__(self, inner: Engine, module: nn.Module, strategy: DDPStrategy) -> None:
        self.model: Stateful = module
        self._module = module
        self.optimizers: Sequence[Optimizer] = inner.optimizers
        self.owns = inner.owns
        self.call: Mapping[str, Callable[..., Any]] = inner.call
        self.place: Callable[[Any], Any] | None = inner.place
        self.window: Callable[[bool], AbstractContextManager[Any] | None] | None = self._window
        self.before_forward: Callable[[], None] | None = None
        self.unscale, self.clip, self.update = inner.unscale, inner.clip, inner.update
        self.optimizer_states, self.load_optimizer_states = inner.optimizer_states, inner.load_optimizer_states
        self._inner, self._find_unused = inner, strategy.find_unused_parameters or len(inner.optimizers) > 1
        self._buffers = [b for b in module.buffers() if b.numel()]
        self.boundary: Callable[[], None] | None = self._end_of_batch if self._buffers else inner.boundary
        self._trains, self._exchanges = False, True
        self._mark = strategy.mark
        self._alone = _WithoutExchange(self)
        self._reducer, self._logger = _reducer(module, strategy, self._find_unused)

    def _window(self, last: bool) -> AbstractContextManager[Any] | None:
        """Return the context without an exchange for all but the last batch of a window."""
        self._trains = True
        return None if last else self._alone

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass, the gradients averaged over the ranks while it runs, unless a window goes on."""
        self.prepare_backward(loss)
        self._inner.backward(loss, *args, **kwargs)

    def prepare_backward(self, loss: Tensor) -> None:
        """Make the reducer wait for the gradients of a backward pass, unless a window goes on."""
        if self._exchanges and self._reducer is not None:
            self._mark()
            self._reducer.prepare_for_forward()
            self._reducer._rebuild_buckets()  # in the order of the first backward pass; after that it does nothing
            self._reducer.prepare_for_backward([loss] if self._find_unused else [])

    def zero_loss(self) -> Tensor:
        """Return a loss of zero that reaches each trainable parameter, whatever the values of these."""
        parts = [p.reshape(-1)[:0].sum().float() for p in self._module.parameters() if p.requires_grad]
        return torch.stack(parts).sum()

    def _end_of_batch(self) -> None:
        """Give rank 0's buffers, such as running means, to every rank after a batch of training; end the inner batch.

        Evaluation changes none, and ranks may have other numbers of batches there.
        """
        if self._trains:
            self._trains = False
            copy_from_first(self._buffers)
        if self._inner.boundary is not None:
            self._inner.boundary()

    def close(self) -> None:
        """Take the reducer's hooks off the parameters."""
        if self._reducer is not None:
            self._reducer._remove_autograd_hooks()
            self._reducer = self._logger = None
        self._inner.close()


class _WithoutExchange:
    """Context in which an engine's backward passes add up gradients on this rank alone.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: DDPEngine) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        self._engine._exchanges = False

    def __exit__(self, *error: object) -> None:
        self._engine._exchanges = True


def _reducer(module: nn.Module, strategy: DDPStrategy, find_unused: bool) -> tuple[Any, Any]:
    """Return torch's reducer over the trainable parameters, None where there are none, and what must live with it."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    if not named:
        return None, None
    parameters = [p for _, p in named]
    tables = {id(m.weight) for m in module.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.sparse}
    sparse, cap = [id(p) in tables for p in parameters], strategy.bucket_cap_mb * _MB
    # As DistributedDataParallel does: a first bucket of 1 MB, so that the exchange begins early.
    buckets, limits = _torch._compute_bucket_assignment_by_size(parameters, [_MB, cap], sparse)
    reducer = _torch.Reducer(
        parameters,
        list(reversed(buckets)),
        list(reversed(limits)),
        dist.group.WORLD,
        sparse,
        cap,
        find_unused,
        strategy.gradient_as_bucket_view,
        {i: name for i, (name, _) in enumerate(named)},
        _MB,
    )
    logger = _torch.Logger(reducer)  # which the reducer calls without asking, and does not keep alive
    reducer.set_logger(logger)
    return reducer, logger


def _check_same(who: str, tensors: Mapping[str, Tensor], collectives: Collectives) -> None:
    """Compare names, shapes and formats, since an exchange of other sizes would end the process.

    Raises:
        MisconfigurationException: On every rank, if one has others than rank 0.
    """
    mine = [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in tensors.items()]
    first = collectives.broadcast_object(mine)
    if collectives.any(mine != first):
        other = sorted(set(mine) ^ set(first)) or ["another order on another rank"]
        raise MisconfigurationException(
            f"{who}: every rank must build the same module. Got a difference to rank 0: {', '.join(other[:5])}. "
            "Build it without looking at the rank."
        )


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Give rank 0's values to every rank, in exchanges of some megabytes, whatever the formats.

    Args:
        tensors: The same on every rank, up to their values.
    """
    for part in _parts(tensors):
        sent = torch.cat([t.detach().contiguous().reshape(-1).view(torch.uint8) for t in part])
        dist.broadcast(sent, 0)
        if dist.get_rank():
            sizes = [t.numel() * t.element_size() for t in part]
            for tensor, data in zip(part, torch.split(sent, sizes), strict=True):
                tensor.detach().copy_(data.clone().view(tensor.dtype).reshape(tensor.shape))


def _parts(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    part: list[Tensor] = []
    size = 0
    for tensor in tensors:
        part.append(tensor)
        size += tensor.numel() * tensor.element_size()
        if size >= 16 * _MB:
            yield part
            part, size = [], 0
    if part:
        yield part


# By the names that users pass.
ddp_find_unused_parameters_false = partial(DDPStrategy, False)
ddp_find_unused_parameters_true = partial(DDPStrategy, True)
ddp_spawn = partial(DDPStrategy, start_method="spawn")
ddp_spawn_find_unused_parameters_false = partial(DDPStrategy, False, start_method="spawn")
ddp_spawn_find_unused_parameters_true = partial(DDPStrategy, True, start_method="spawn")
ddp_fork = partial(DDPStrategy, start_method="fork")
ddp_fork_find_unused_parameters_false = partial(DDPStrategy, False, start_method="fork")
ddp_fork_find_unused_parameters_true = partial(DDPStrategy, True, start_method="fork")
