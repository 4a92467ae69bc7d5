"""Strategy of several ranks with an exchange of its own, as a package of somebody else's would hold it.

Ranks meet in a `TCPStore` alone: torch has no process group, and nothing but lt_interface is imported beside torch.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial, reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed import DistNetworkError, PrefixStore, TCPStore
from torch.optim import Optimizer

from lt_interface import (
    BARRIER_SECONDS,
    Accelerator,
    ClusterEnvironment,
    Collectives,
    Engine,
    MisconfigurationException,
    PlainCollectives,
    Plan,
    Precision,
    Problem,
    RankFailedError,
    WholeModuleStrategy,
    World,
)

_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(0) if x.is_floating_point() else x.double().mean(0).to(torch.get_default_dtype()),
    "sum": lambda x: x.sum(0, dtype=torch.int64 if x.dtype == torch.bool else x.dtype),
    "min": lambda x: x.amin(0),
    "max": lambda x: x.amax(0),
}


class Rounds:
    """Messages that each rank gives in turn, by way of a store; each round is kept until the next one is complete."""

    def __init__(self, name: str, store: Any, rank: int, size: int) -> None:
        self._name, self._store, self._rank, self._size, self._round = name, store, rank, size, 0

    def send(self, message: Any) -> None:
        """Give this rank's message of the next round."""
        self._round += 1
        with lost_store_is_failure():
            self._store.set(f"{self._name}/{self._round}/{self._rank}", pickle.dumps(message))

    def receive(self, what: str = "an exchange", timeout: float = BARRIER_SECONDS) -> list[Any]:
        """Return the messages of this round by rank, once all are there."""
        keys = [f"{self._name}/{self._round}/{rank}" for rank in range(self._size)]
        until = time.monotonic() + timeout
        with lost_store_is_failure():
            while True:
                if self._store.check(["failed"]):
                    raise RankFailedError(self._store.get("failed").decode())
                if self._store.check(keys):
                    break
                if time.monotonic() > until:
                    missing = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
                    raise TimeoutError(f"{what}: all must come within {timeout:g} s. Got nothing of ranks {missing}.")
                time.sleep(0.0005)
            found = [pickle.loads(self._store.get(key)) for key in keys]
            self._store.delete_key(f"{self._name}/{self._round - 1}/{self._rank}")
        return found


@contextmanager
def lost_store_is_failure() -> Iterator[None]:
    """Take the end of the store, which rank 0 holds, for a failure of rank 0."""
    try:
        yield
    except DistNetworkError as error:
        raise RankFailedError("rank 0: it must run as long as all others. Got the end of its store.") from error


class StoreCollectives:
    """Exchange of ranks that have a store in common."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self.rank = store, rank
        self._calls, self._flags, self._ends = (Rounds(name, store, rank, size) for name in ("calls", "flags", "ends"))
        self._on_way = False

    def gather_object(self, obj: Any) -> list[Any]:
        self._calls.send(obj)
        return self._calls.receive()

    def broadcast_object(self, obj: Any, src: int = 0) -> Any:
        return self.gather_object(obj if self.rank == src else None)[src]

    def all_gather(self, tensor: Tensor, group: Any = "data", sync_grads: bool = False) -> Tensor:
        if group not in ("data", "all"):
            raise MisconfigurationException(f'collectives: a group is "data" or "all" here. Got {group!r}. Give one.')
        if sync_grads:
            gathered: Tensor = _Gather.apply(tensor, self)
            return gathered
        return torch.stack(self.gather_object(tensor.detach().cpu())).to(tensor.device)

    def reduce(self, tensor: Tensor, op: str = "mean", group: Any = "data") -> Tensor:
        return _REDUCTIONS[op](self.all_gather(tensor, group))

    def barrier(self, name: str = "", timeout: float = BARRIER_SECONDS) -> None:
        self._calls.send(None)
        self._calls.receive(f"barrier {name!r}", timeout)

    def any(self, flag: bool) -> bool:
        return any(self.gather_object(flag))

    def agree(self, bits: int) -> int:
        before = self.settle()
        self._flags.send(bits)
        self._on_way = True
        return before

    def settle(self) -> int:
        found, self._on_way = self._flags.receive() if self._on_way else [], False
        return reduce(or_, found, 0)

    def fail(self, text: str) -> None:
        """Record a failure, unless another rank did before."""
        with suppress(DistNetworkError):
            self._store.compare_set("failed", "", f"rank {self.rank}, {text}")

    def part(self) -> None:
        """Take leave: rank 0, which holds the store, goes last."""
        with suppress(RankFailedError):
            self._ends.send(None)
            if self.rank == 0:
                self._ends.receive("the end of the run")


class _Gather(torch.autograd.Function):
    """Gathering whose gradients go back to the rank that each part came from."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, exchange: StoreCollectives) -> Tensor:
        ctx.exchange = exchange
        return exchange.all_gather(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.reduce(gradients[0], "sum")[ctx.exchange.rank], None


class AveragingEngine:
    """Engine that averages all gradients over the ranks where a window's last backward pass ends."""

    def __init__(self, inner: Engine, module: nn.Module, exchange: Collectives) -> None:
        self._inner, self.model, self._exchange = inner, module, exchange
        self.optimizers, self.owns, self.call, self.place = inner.optimizers, inner.owns, inner.call, inner.place
        self.before_forward, self.close = inner.before_forward, inner.close
        self.unscale, self.clip = inner.unscale, inner.clip
        self.optimizer_states, self.load_optimizer_states = inner.optimizer_states, inner.load_optimizer_states
        self._last, self._trained = True, False

    def window(self, last: bool) -> AbstractContextManager[Any] | None:
        self._last = last
        return None if self._inner.window is None else self._inner.window(last)

    def prepare_backward(self, loss: Tensor) -> None:
        self._trained = True
        if self._last:
            hook = loss.register_hook(lambda gradient: self._begin(hook))

    def _begin(self, hook: Any) -> None:
        hook.remove()
        Variable._execution_engine.queue_callback(self._average)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.prepare_backward(loss)
        self._inner.backward(loss, *args, **kwargs)

    def _average(self) -> None:
        parameters = list(self.model.parameters())
        every = self._exchange.gather_object([p.grad for p in parameters])
        for parameter, gradients in zip(parameters, zip(*every, strict=True), strict=True):
            there = [gradient for gradient in gradients if gradient is not None]
            if there:
                parameter.grad = torch.stack(there).sum(0) / len(gradients)

    def update(self, index: int, last: bool, closure: Callable[[], Any] | None = None, **kwargs: Any) -> bool:
        return self._inner.update(index, last, None if closure is None else partial(self._mean, closure), **kwargs)

    def _mean(self, closure: Callable[[], Any]) -> Any:
        """Return the mean of a closure's loss, so that an optimizer decides alike on every rank."""
        return self._exchange.reduce(torch.as_tensor(closure() or 0.0).detach())

    def boundary(self) -> None:
        buffers = list(self.model.buffers())
        if self._trained and buffers:
            for buffer, first in zip(buffers, self._exchange.broadcast_object(buffers), strict=True):
                buffer.copy_(first)
        self._trained = False
        if self._inner.boundary is not None:
            self._inner.boundary()

    def zero_loss(self) -> Tensor:
        parts = (p.flatten()[:0].sum() for p in self.model.parameters() if p.requires_grad)
        return sum(parts, torch.zeros((), requires_grad=True))


class AveragingStrategy(WholeModuleStrategy):
    """Strategy of ranks on CPUs that each hold the whole module."""

    name, default_launcher = "averaging", "pair"
    device, collectives = torch.device("cpu"), PlainCollectives()
    _accelerator: Accelerator | None = None
    _metrics: Sequence[Any] = ()

    def problems(self, plan: Plan, module: nn.Module | None = None) -> Sequence[Problem]:
        where = 'Trainer(strategy="averaging")'
        found = [Problem(where, "it runs on CPUs", plan.accelerator)] if plan.accelerator != "cpu" else []
        return found + ([Problem(where, "it has no batch norm over ranks")] if plan.sync_batchnorm else [])

    def setup(
        self, cluster: ClusterEnvironment | None, accelerator: Accelerator, devices: Sequence[int], plan: Plan
    ) -> World:
        world = World() if cluster is None else cluster.world()
        if cluster is None and "RANK" in os.environ:
            rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            world = World(rank, size, rank, size, 0, rank, size)
        if world.size != plan.processes:
            raise MisconfigurationException(f"averaging: {plan.processes} ranks are due. Got {world.size}. Start them.")
        self._accelerator, self.device = accelerator, accelerator.device(devices[world.local_rank % len(devices)])
        accelerator.setup(self.device)
        self.collectives = exchange_of(world, cluster)
        return world

    def init_context(self, empty: bool | None = None) -> AbstractContextManager[Any]:
        return nullcontext()

    def shard(self, module: nn.Module, precision: Precision, loads_weights: bool) -> nn.Module:
        module = super().shard(module, precision, loads_weights)
        if self.world.size > 1:
            module.load_state_dict(self.collectives.broadcast_object(module.state_dict()))
            self._metrics = [each for each in module.modules() if getattr(each, "dist_sync_fn", each) is None]
        for each in self._metrics:
            each.dist_sync_fn = lambda tensor, group=None: self.collectives.gather_object(tensor)
            each.distributed_available_fn = lambda: True
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
        inner = default(module, optimizers, schedulers, precision, plan)
        return AveragingEngine(inner, module, self.collectives) if self.world.size > 1 else inner

    def report(self, where: str, error: BaseException) -> BaseException:
        if isinstance(self.collectives, StoreCollectives):
            self.collectives.fail(f"{where}: {error!r}")
        return error

    def leave(self, error: BaseException | None = None) -> None:
        if self._accelerator is not None:
            self._accelerator.teardown()
            for each in self._metrics:
                each.dist_sync_fn, each.distributed_available_fn = None, torch.distributed.is_initialized
            self._accelerator, self._metrics = None, ()
            if error is None and isinstance(self.collectives, StoreCollectives):
                self.collectives.part()


_stores: list[Any] = []  # of this process: its first store, whose port is taken as long as rank 0 lives, and one a call


def exchange_of(world: World, cluster: ClusterEnvironment | None = None) -> Collectives:
    """Return the exchange of a world, by a store that rank 0 holds."""
    if world.size == 1:
        return PlainCollectives()
    if not _stores:
        host, port = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
        if cluster is not None:
            host, port = cluster.main_address, cluster.main_port
        limit = timedelta(seconds=BARRIER_SECONDS)
        _stores.append(TCPStore(host, port, None, world.is_global_zero, limit, wait_for_workers=False))
    _stores.append(PrefixStore(str(len(_stores)), _stores[0]))
    return StoreCollectives(_stores[-1], world.rank, world.size)
