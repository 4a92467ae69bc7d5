"""Data parallelism: every rank holds the whole model, sees its own share of the data, and averages gradients.

The engine drives torch's reducer, the machine inside ``DistributedDataParallel``, and not that module itself. So the
user's step is called as it is, with no frame between; a backward pass inside ``training_step`` (manual optimization)
is exchanged like any other; and nothing of the module's names changes.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lt_accel.collectives import ProcessGroupCollectives
from lt_accel.group import join, leave, second_group, world_of
from lt_accel.metric_states import let_gather, take_back
from lt_accel.peers import Peers
from lt_accel.strategies.batch_norm import SharedStatistics
from lt_accel.strategies.options import backend_of, backend_problems, option_problems
from lt_accel.strategies.reducer import GradientExchange, PackedState
from lt_accel.strategies.same import check_module, check_optimizers, copy_from_first, drifted
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
    decides_by_closure,
)

__all__ = ["DDPEngine", "DDPStrategy"]

# By start method: the strategy's name and the launcher.
_LAUNCHERS = {
    "popen": ("ddp", "subprocess"),
    "spawn": ("ddp_spawn", "spawn"),
    "fork": ("ddp_fork", "fork"),
}

_STATIC_WINDOW = Problem(
    "DDPStrategy(static_graph=True)",
    "torch counts the backward passes of a static graph, and loses count where some exchange no gradients",
    "accumulate_grad_batches above 1",
    "Leave static_graph out, or do not accumulate.",
)


class DDPStrategy(WholeModuleStrategy):
    """Whole model on every rank, gradients averaged once a window.

    Args:
        find_unused_parameters: Look, after each forward pass, for parameters that the loss does not depend on. Needed
            where that changes from batch to batch. With several optimizers they are looked for in any case, since each
            one's loss depends on a part of them.
        gradient_as_bucket_view: Let gradients be views of what is exchanged, which saves their memory once.
        bucket_cap_mb: Size of one exchange, in MB; 25 if None.
        timeout: How long a collective waits for the other ranks.
        start_method: What starts the ranks where no scheduler has: ``"popen"`` runs the script again, ``"spawn"``
            starts new interpreters, ``"fork"`` forks this process.
        static_graph: Whether each backward pass uses the same parameters in the same way, those of the first one.
        broadcast_buffers: Whether rank 0's buffers, such as running means, go to every rank after a batch of training.
        ddp_comm_hook: A function ``(state, bucket) -> future`` that exchanges one bucket of gradients, such as those of
            ``torch.distributed.algorithms.ddp_comm_hooks``, or a ``torch.distributed.BuiltinCommHookType``.
        ddp_comm_state: What the hook gets as its state.
        ddp_comm_wrapper: A function that makes another hook of the hook, such as ``fp16_compress_wrapper``.
        process_group_backend: What exchanges tensors: ``"gloo"``, ``"nccl"``, or what torch knows besides. By default
            nccl for cards and gloo for CPUs. A group that the user made before is taken as it is.
        others: Options that code for other trainers has, at their defaults.

    Raises:
        ConfigError: If an option is unknown, wrong, or one that the trainer has a flag for; all problems at once.
    """

    def __init__(
        self,
        find_unused_parameters: bool = False,
        gradient_as_bucket_view: bool = False,
        bucket_cap_mb: float | None = 25,
        timeout: timedelta = timedelta(minutes=30),
        start_method: str = "popen",
        *,
        static_graph: bool = False,
        broadcast_buffers: bool = True,
        ddp_comm_hook: Callable[..., Any] | None = None,
        ddp_comm_state: Any = None,
        ddp_comm_wrapper: Callable[..., Any] | None = None,
        process_group_backend: str | None = None,
        **others: Any,
    ) -> None:
        given = locals()
        taken = {name: given[name] for name in signature(DDPStrategy).parameters if name != "others"}
        problems = option_problems(type(self).__name__, taken, others)
        if start_method not in _LAUNCHERS:
            rule = f"it must be one of {', '.join(map(repr, _LAUNCHERS))}"
            problems.append(Problem(f"{type(self).__name__}(start_method)", rule, repr(start_method)))
        if problems:
            raise ConfigError(problems)
        self.name, self.default_launcher = _LAUNCHERS[start_method]
        self.find_unused_parameters = find_unused_parameters
        self.gradient_as_bucket_view = gradient_as_bucket_view
        self.bucket_cap_mb = 25 if bucket_cap_mb is None else bucket_cap_mb
        self.static_graph, self.broadcast_buffers = static_graph, broadcast_buffers
        self.comm_hook: Any = ddp_comm_hook if ddp_comm_wrapper is None else ddp_comm_wrapper(ddp_comm_hook)
        self.comm_state = ddp_comm_state
        self.process_group_backend = process_group_backend
        self.timeout = timeout
        self.device = torch.device("cpu")
        self.collectives: Collectives = PlainCollectives()
        self.world = World()
        self._accelerator: Accelerator | None = None
        self._peers: Peers | None = None
        self._shares_statistics = False
        self._engine: DDPEngine | None = None
        self.statistics: SharedStatistics | None = None
        self._metrics: list[Any] = []
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        """Return all but what belongs to this process; a hook's state as bytes, since some are only read in a group."""
        state = super().__getstate__()
        if self.comm_state is not None:
            state["comm_state"] = PackedState(pickle.dumps(self.comm_state))
        return state

    def problems(self, plan: Plan, module: nn.Module | None = None) -> Sequence[Problem]:
        """Refuse a backend that is absent or does not fit the devices, and windows over a static graph."""
        found = backend_problems(f'Trainer(strategy="{self.name}")', self.process_group_backend, plan)
        if self.static_graph and plan.accumulate > 1 and plan.processes > 1:
            found.append(_STATIC_WINDOW)
        return found

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
                    "there must be as many ranks as devices",
                    f"{plan.processes} process{'' if plan.processes == 1 else 'es'}, and WORLD_SIZE={world.size}",
                    f"Start {plan.processes}, set devices= and num_nodes=, or unset WORLD_SIZE for a training alone.",
                )
            )
        self.device = accelerator.device(devices[world.local_rank % len(devices)])
        accelerator.setup(self.device)
        self._accelerator, self.world = accelerator, world
        self._shares_statistics = plan.sync_batchnorm and plan.stage == "fit" and world.size > 1
        if world.size == 1:
            self.collectives = PlainCollectives()
        else:
            backend = backend_of(self.process_group_backend, self.device.type)
            self._peers = join(world, cluster, self.timeout, backend)
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
            check_module(module, self.collectives)
            copy_from_first([*module.parameters(), *module.buffers()])
            self._metrics = let_gather(module.modules())
        if self._shares_statistics and self._peers is not None:
            exchange = partial(self._peers.exchange, group=partial(second_group, self.device.type, self.timeout))
            self.statistics = SharedStatistics(module, exchange)
            self.collective_forward = self.collective_forward or bool(self.statistics.layers)
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
        if self.world.size > 1 and plan.stage == "fit":
            check_optimizers(module, optimizers, self.collectives)
        if self.world.size == 1 or not optimizers:
            return inner
        if self.static_graph and len(optimizers) > 1:
            raise MisconfigurationException(
                Problem(
                    f"{type(self).__name__}(static_graph=True)",
                    "each backward pass must use the same parameters, and each optimizer's loss uses others",
                    f"{len(optimizers)} optimizers",
                    "Leave static_graph out.",
                )
            )
        self._engine = DDPEngine(inner, module, self)
        return self._engine

    def compare_ranks(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Compare the optimizers' values, and warn once of weights that differ, unless a hook exchanges as it likes.

        Raises:
            MisconfigurationException: On every rank, if an optimizer has other values than rank 0's.
        """
        if self.world.size == 1:
            return
        check_optimizers(module, optimizers, self.collectives, changed=True)
        if self.comm_hook is None and not self._warned and (found := drifted(module, self.collectives)):
            self._warned = True
            if self.world.rank == 0:
                warnings.warn(
                    f"{type(module).__name__}: every rank must have the same weights, but something changed them on "
                    f"one alone. Got {found}. What is saved is rank 0's. Change weights on every rank in the same way.",
                    stacklevel=2,
                )

    def block_backward_sync(self) -> AbstractContextManager[Any]:
        """Return a context in which backward passes add up gradients on this rank; the next one outside averages them.

        Raises:
            MisconfigurationException: If the graph is static.
        """
        return super().block_backward_sync() if self._engine is None else self._engine.alone()

    def release(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Move the module and the optimizers' states to the CPU; batch norm is as the user wrote it again.

        Args:
            module: What ``shard`` returned.
            optimizers: The user's optimizers.
        """
        self._restore()
        super().release(module, optimizers)

    def _restore(self) -> None:
        if self.statistics is not None:
            self.__dict__.pop("collective_forward", None)
            self.statistics.restore()
            self.statistics = None

    def mark(self) -> None:
        """Count a backward pass that exchanges gradients, for ranks that wait elsewhere meanwhile."""
        if self._peers is not None:
            self._peers.mark()

    def meet(self, what: str, fix: str) -> None:
        """Wait until every rank comes to the same place.

        Args:
            what: What this rank is about to do there.
            fix: What users may do where not all ranks come.

        Raises:
            MisconfigurationException: If other ranks do something else, or went on.
        """
        if self._peers is not None:
            self._peers.meet(what, fix=fix)

    def report(self, where: str, error: BaseException) -> BaseException:
        """Report this rank's error to the others; return it, or one that names the rank from whose error it follows."""
        return error if self._peers is None else self._peers.fail(where, error)

    def leave(self, error: BaseException | None = None) -> None:
        """Keep the process group for the next call; after an error leave it, without waiting for anybody."""
        if self._accelerator is None:
            return
        self._restore()
        self._accelerator.teardown()
        self._accelerator = self._peers = self._engine = None
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
        self.unscale, self.clip = inner.unscale, inner.clip
        self._searches = [decides_by_closure(optimizer) for optimizer in inner.optimizers]
        if not any(self._searches):
            self.update = inner.update  # type: ignore[method-assign]
        self.optimizer_states, self.load_optimizer_states = inner.optimizer_states, inner.load_optimizer_states
        self._inner, self._statistics = inner, strategy.statistics
        self._collectives, self._device = strategy.collectives, strategy.device
        self._buffers = _buffers(module) if strategy.broadcast_buffers else []
        self.boundary: Callable[[], None] | None = self._end_of_batch
        self._trains, self._unfinished = False, False
        self._mark = strategy.mark
        exchange = GradientExchange(module, strategy, len(inner.optimizers) > 1)
        self._alone, self._static = _WithoutExchange(exchange), strategy.static_graph
        self._exchange: GradientExchange | None = exchange

    def _window(self, last: bool) -> AbstractContextManager[Any] | None:
        """Return the context without an exchange for all but the last batch of a window."""
        self._trains = True
        return None if last else self.alone()

    def alone(self) -> AbstractContextManager[Any]:
        """Return the context without an exchange.

        Raises:
            MisconfigurationException: If the graph is static.
        """
        if self._static:
            raise MisconfigurationException(_STATIC_WINDOW)
        return self._alone

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass, the gradients averaged over the ranks while it runs, unless a window goes on."""
        self.prepare_backward(loss)
        self._inner.backward(loss, *args, **kwargs)
        self._finish()

    def prepare_backward(self, loss: Tensor) -> None:
        """Make the reducer wait for the gradients of a backward pass, unless a window goes on."""
        if self._exchange is None:
            return
        self._finish()
        self._exchange.expected = True
        if not self._exchange.held_back:
            self._exchange.prepare(loss)
            self._unfinished = True
        else:
            self._exchange.open = True

    def _finish(self) -> None:
        """Check what the last backward pass exchanged: an overridden ``backward`` has ended by the next look."""
        if self._exchange is None:
            return
        self._exchange.expected = False
        if self._unfinished:
            self._unfinished = False
            self._exchange.finish()

    def update(self, index: int, last: bool, closure: Callable[[], Any] | None = None, **kwargs: Any) -> bool:
        """Step an optimizer; one that decides by the loss, as LBFGS does, gets the mean over the ranks."""
        if closure is not None and self._searches[index]:
            closure = partial(self._mean_loss, closure)
        return self._inner.update(index, last, closure, **kwargs)

    def _mean_loss(self, closure: Callable[[], Any]) -> Any:
        loss = closure()
        # Zero where it was skipped, here or everywhere: then all ranks decide by the same number, too.
        own = torch.as_tensor(0.0 if loss is None else loss, device=self._device).detach()
        return self._collectives.reduce(own)

    def take_weight(self, weight: float) -> None:
        """Take over what the next batch counts: batch norm over the ranks leaves out one that only repeats samples."""
        if self._statistics is not None:
            self._statistics.weight = weight

    def zero_loss(self) -> Tensor:
        """Return a loss of zero that reaches each trainable parameter, whatever the values of these."""
        parts = [p.reshape(-1)[:0].sum().float() for p in self._module.parameters() if p.requires_grad]
        # Where all is frozen there is nothing to reach.
        return torch.stack(parts).sum() if parts else torch.zeros((), requires_grad=True)

    def _end_of_batch(self) -> None:
        """Give rank 0's buffers, such as running means, to every rank after a batch of training; end the inner batch.

        Evaluation changes none, and ranks may have other numbers of batches there.
        """
        self._finish()
        if self._trains:
            self._trains = False
            if self._buffers:
                self._mark()
                copy_from_first(_now(held, key, first) for held, key, first in self._buffers)
        if self._inner.boundary is not None:
            self._inner.boundary()

    def close(self) -> None:
        """Take the reducer's hooks off the parameters."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
        self._inner.close()


def _buffers(module: nn.Module) -> list[tuple[Mapping[str, Tensor | None], str, Tensor]]:
    """Return where each buffer of a module lies, and the tensor that lies there now."""
    held = [(part._buffers, key, b) for part in module.modules() for key, b in part._buffers.items() if b is not None]
    return [each for each in held if each[2].numel()]


def _now(held: Mapping[str, Tensor | None], key: str, first: Tensor) -> Tensor:
    """Return the tensor that lies where a buffer lay: a step may assign another one.

    One of another form stays this rank's own, since the exchange must have the same size on every rank.
    """
    now = held.get(key)
    alike = now is not None and (now.shape, now.dtype, now.device) == (first.shape, first.dtype, first.device)
    return now if alike and now is not None else first


class _WithoutExchange:
    """Context in which backward passes add up gradients on this rank alone.

    Args:
        exchange: The exchange that waits.
    """

    def __init__(self, exchange: GradientExchange) -> None:
        self._exchange = exchange

    def __enter__(self) -> None:
        self._exchange.held_back += 1

    def __exit__(self, *error: object) -> None:
        self._exchange.held_back -= 1


# By the names that users pass.
ddp_find_unused_parameters_false = partial(DDPStrategy, False)
ddp_find_unused_parameters_true = partial(DDPStrategy, True)
ddp_spawn = partial(DDPStrategy, start_method="spawn")
ddp_spawn_find_unused_parameters_false = partial(DDPStrategy, False, start_method="spawn")
ddp_spawn_find_unused_parameters_true = partial(DDPStrategy, True, start_method="spawn")
ddp_fork = partial(DDPStrategy, start_method="fork")
ddp_fork_find_unused_parameters_false = partial(DDPStrategy, False, start_method="fork")
ddp_fork_find_unused_parameters_true = partial(DDPStrategy, True, start_method="fork")
