"""Options of the strategy ddp: what each of them does to the exchange of gradients, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch._dynamo  # here, and not in each forked rank: it takes a second
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, post_localSGD_hook, powerSGD_hook

from lt_accel.strategies import ddp
from lt_accel.strategies.ddp import DDPStrategy
from lt_accel.strategies.options import backend_of
from lt_interface import ConfigError, MisconfigurationException, Plan
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.reference import ReferenceAccelerator, ReferenceEngine, ReferencePrecision

PAIR = Plan(devices=(0, 1))


class Net(nn.Module):
    """Two layers, of which a batch may leave out the second."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.first(batch).square().mean() + self.second(batch).tanh().mean()

    def half_a_step(self, batch: Tensor) -> Tensor:
        """Return a loss that leaves out the second layer."""
        return self.first(batch).square().mean()


def engine_of(module: nn.Module, optimizers: int = 1, **options: Any) -> Any:
    """Return an engine that has joined the other rank."""
    strategy = DDPStrategy(**options)
    strategy.setup(None, ReferenceAccelerator(), (0, 1), PAIR)
    strategy.shard(module, ReferencePrecision(), False)
    made = [torch.optim.SGD(module.parameters(), lr=0.1) for _ in range(optimizers)]
    return strategy.engine(module, made, [], ReferencePrecision(), PAIR, ReferenceEngine)


def batches(rank: int, count: int = 6) -> Tensor:
    """Return a rank's batches."""
    torch.manual_seed(11)
    return torch.randn(2, count, 5, 4)[rank]


def gradients(net: nn.Module) -> list[Any]:
    """Return the gradients as plain numbers."""
    return [None if p.grad is None else p.grad.flatten().tolist() for p in net.parameters()]


def mean_gradients(change: Callable[[nn.Module], Any] = lambda net: None, i: int = 0) -> list[Any]:
    """Return the mean over both ranks' batches of the gradients of one process."""
    net = Net()
    change(net)
    for rank in range(2):
        (net.training_step(batches(rank)[i], i) / 2).backward()
    return gradients(net)


def close(found: list[Any], expected: list[Any], atol: float = 1e-6) -> None:
    """Compare gradients."""
    for mine, value in zip(found, expected, strict=True):
        assert (mine is None) is (value is None)
        if value is not None:
            torch.testing.assert_close(torch.tensor(mine), torch.tensor(value), rtol=0, atol=atol)


def over_ranks(**options: Any) -> list[list[Any]]:
    """Return the gradients of both ranks after each of some batches."""

    def job(rank: int) -> list[Any]:
        net = Net()
        engine, found = engine_of(net, **options), []
        for i, batch in enumerate(batches(rank)):
            net.zero_grad()
            engine.backward(net.training_step(batch, i))
            found.append(gradients(net))
        return found

    return run_ranks(job)


@pytest.mark.parametrize(
    ("options", "atol"),
    [
        ({}, 1e-6),
        ({"gradient_as_bucket_view": True}, 1e-6),
        ({"find_unused_parameters": True}, 1e-6),
        ({"static_graph": True}, 1e-6),
        ({"static_graph": True, "find_unused_parameters": True, "gradient_as_bucket_view": True}, 1e-6),
        ({"bucket_cap_mb": 1e-6}, 1e-6),
        ({"bucket_cap_mb": None, "broadcast_buffers": False}, 1e-6),
        ({"ddp_comm_hook": default_hooks.allreduce_hook}, 1e-6),
        ({"ddp_comm_hook": default_hooks.fp16_compress_hook}, 1e-2),
        ({"ddp_comm_hook": default_hooks.bf16_compress_hook}, 3e-2),
        ({"ddp_comm_hook": dist.BuiltinCommHookType.ALLREDUCE}, 1e-6),
        ({"ddp_comm_hook": dist.BuiltinCommHookType.FP16_COMPRESS}, 1e-2),
        (
            {"ddp_comm_hook": default_hooks.allreduce_hook, "ddp_comm_wrapper": default_hooks.fp16_compress_wrapper},
            1e-2,
        ),
        ({"ddp_comm_hook": default_hooks.allreduce_hook, "static_graph": True}, 1e-6),
    ],
)
def test_gradients_are_the_mean_whatever_the_options(options: dict[str, Any], atol: float) -> None:
    """Each way to exchange gives both ranks the mean of their gradients, batch after batch."""
    first, second = over_ranks(**options)
    assert first == second
    for i, found in enumerate(first):
        close(found, mean_gradients(i=i), atol)


def test_a_hook_gets_its_state() -> None:
    """The hook exchanges each bucket, with the state that was given beside it."""

    def job(rank: int) -> int:
        def hook(state: list[int], bucket: Any) -> Any:
            state.append(bucket.index())
            return default_hooks.allreduce_hook(None, bucket)

        state: list[int] = []
        net = Net()
        engine = engine_of(net, ddp_comm_hook=hook, ddp_comm_state=state)
        for i, batch in enumerate(batches(rank)):
            engine.backward(net.training_step(batch, i))
        return len(state)

    assert run_ranks(job) == [6, 6]


def test_power_sgd_begins_anew_with_other_buckets() -> None:
    """PowerSGD keeps ranks alike, and goes on where layers are unfrozen and its buckets are others."""

    def job(rank: int) -> list[Any]:
        net = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 20), nn.Linear(20, 1))
        net[0].requires_grad_(False)
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
        engine = engine_of(net, ddp_comm_hook=powerSGD_hook.powerSGD_hook, ddp_comm_state=state)
        torch.manual_seed(rank)
        found = []
        for i in range(8):
            if i == 4:
                net[0].requires_grad_(True)
            net.zero_grad()
            engine.backward(net(torch.randn(4, 30)).square().mean())
            found.append(gradients(net))
        assert state.error_dict
        return found

    first, second = run_ranks(job)
    assert first == second
    assert first[3][0] is None
    assert first[4][0] is not None


def test_a_hooks_state_travels_to_a_rank() -> None:
    """A strategy with a hook's state is pickled, and read where no process group stands yet, as by a spawned rank."""
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
    sent = pickle.dumps(DDPStrategy(ddp_comm_hook=powerSGD_hook.powerSGD_hook, ddp_comm_state=state))

    def job(rank: int) -> int:
        net, strategy = Net(), pickle.loads(sent)
        strategy.setup(None, ReferenceAccelerator(), (0, 1), PAIR)
        optimizers = [torch.optim.SGD(net.parameters(), lr=0.1)]
        engine = strategy.engine(net, optimizers, [], ReferencePrecision(), PAIR, ReferenceEngine)
        engine.backward(net.training_step(batches(rank)[0], 0))
        rank_of_matrices: int = strategy.comm_state.matrix_approximation_rank
        return rank_of_matrices

    assert run_ranks(job) == [2, 2]


def test_windows_over_a_static_graph_are_refused() -> None:
    """Under static_graph=True an accumulation window is a problem of the plan, or an error where it comes later."""
    strategy = DDPStrategy(static_graph=True)
    assert not strategy.problems(PAIR)
    assert not strategy.problems(Plan(accumulate=2))
    (problem,) = strategy.problems(Plan(devices=(0, 1), accumulate=2))
    assert "Leave static_graph out" in str(problem)

    def job(rank: int) -> None:
        engine = engine_of(Net(), static_graph=True)
        assert engine.window(True) is None
        with pytest.raises(MisconfigurationException, match="loses count"):
            engine.window(False)

    run_ranks(job)


def test_a_static_graph_of_several_optimizers_is_refused() -> None:
    """Several optimizers use other parameters in turn, so that static_graph=True is an error that says so."""

    def job(rank: int) -> None:
        with pytest.raises(MisconfigurationException, match=r"static_graph=True.*Got 2 optimizers"):
            engine_of(Net(), 2, static_graph=True)

    run_ranks(job)


@pytest.mark.parametrize("where", ["everywhere", "on rank 1"])
def test_unused_parameters_are_named_at_once(where: str) -> None:
    """A loss that leaves parameters out is an error of the very step, with their names and the flag; nobody hangs."""

    def job(rank: int) -> str:
        net = Net()
        engine = engine_of(net)
        engine.backward(net.training_step(batches(rank)[0], 0))
        if where != "everywhere" and rank == 0:
            try:
                engine.backward(net.training_step(batches(rank)[0], 0))
            except RuntimeError:  # of gloo: the other one left
                return ""
        with pytest.raises(MisconfigurationException) as caught:
            engine.backward(net.half_a_step(batches(rank)[0]))
        engine.close()  # as the core does after an error, so that the group's connections close where it is left
        dist.destroy_process_group()
        return str(caught.value)

    found = run_ranks(job)
    text = found[1]
    assert text.startswith("Net.training_step: the loss must depend on every parameter")
    assert "Got no gradient for second.weight, second.bias on rank 1" in text
    assert 'strategy="ddp_find_unused_parameters_true"' in text
    assert bool(found[0]) is (where == "everywhere")


def test_unused_parameters_of_an_overridden_backward_are_named() -> None:
    """Where the module runs the backward pass itself, the error comes at the batch's end."""

    def job(rank: int) -> None:
        net = Net()
        engine = engine_of(net)
        loss = net.half_a_step(batches(rank)[0])
        engine.prepare_backward(loss)
        loss.backward()
        with pytest.raises(MisconfigurationException, match=r"second\.weight"):
            engine.boundary()

    run_ranks(job)


def test_a_parameter_unused_at_a_windows_end_is_exchanged() -> None:
    """With find_unused_parameters=True what an earlier batch of the window gave a layer is averaged, too."""

    def job(rank: int) -> list[Any]:
        net = Net()
        engine = engine_of(net, find_unused_parameters=True)
        x, y = batches(rank)[:2]
        with engine.window(False):
            engine.backward(net.training_step(x, 0))
        engine.backward(net.half_a_step(y))
        return gradients(net)

    first, second = run_ranks(job)
    net = Net()
    for rank in range(2):
        x, y = batches(rank)[:2]
        (net.training_step(x, 0) / 2).backward()
        (net.half_a_step(y) / 2).backward()
    assert first == second
    close(first, gradients(net))


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}])
def test_layers_are_frozen_and_unfrozen_at_any_batch(options: dict[str, Any]) -> None:
    """What is trained is looked up at each exchange: a layer that comes or goes is averaged from then on, or not."""

    def change(net: nn.Module, i: int) -> None:
        net.second.requires_grad_(i in (2, 3, 5))

    def job(rank: int) -> list[Any]:
        net = Net()
        change(net, 0)
        engine, found = engine_of(net, **options), []
        for i, batch in enumerate(batches(rank)):
            net.zero_grad()
            change(net, i)
            engine.backward(net.training_step(batch, i))
            found.append(gradients(net))
        return found

    first, second = run_ranks(job)
    assert first == second
    for i, found in enumerate(first):
        close(found, mean_gradients(lambda net, i=i: change(net, i), i))


@pytest.mark.parametrize("unused", [False, True])
def test_a_layer_frozen_inside_a_window_keeps_the_ranks_alike(unused: bool) -> None:
    """What a window has of a layer's gradients is averaged, although the layer is frozen when the window ends."""

    def job(rank: int) -> list[Any]:
        net = Net()
        engine = engine_of(net, find_unused_parameters=unused)
        engine.backward(net.training_step(batches(rank)[0], 0))
        net.zero_grad()
        with engine.window(False):
            engine.backward(net.training_step(batches(rank)[1], 1))
        net.second.requires_grad_(False)
        engine.backward(net.training_step(batches(rank)[2], 2))
        return gradients(net)

    first, second = run_ranks(job)
    net = Net()
    for rank in range(2):
        for i in (1, 2):
            net.second.requires_grad_(i == 1)
            (net.training_step(batches(rank)[i], i) / 2).backward()
    assert first == second
    close(first, gradients(net))


def test_another_layer_unfrozen_on_one_rank_is_refused() -> None:
    """Ranks that unfreeze other layers get one error that names them, in place of an exchange of other sizes."""

    def job(rank: int) -> None:
        net = Net()
        net.requires_grad_(False)
        net.first.weight.requires_grad_(True)
        engine = engine_of(net)
        (net.first if rank else net.second).bias.requires_grad_(True)
        with pytest.raises(MisconfigurationException, match="without looking at the rank") as caught:
            engine.backward(net.training_step(batches(rank)[0], 0))
        assert all(f"unfreezing {name}.bias" in str(caught.value) for name in ("first", "second"))

    run_ranks(job)


def _other_rate(rank: int, net: nn.Module) -> Any:
    return torch.optim.SGD(net.parameters(), lr=0.1 + rank)


def _other_kind(rank: int, net: nn.Module) -> Any:
    return (torch.optim.AdamW if rank else torch.optim.Adam)(net.parameters(), lr=0.1)


def _other_groups(rank: int, net: nn.Module) -> Any:
    parts = [net.first, net.second]
    return torch.optim.SGD([{"params": list(part.parameters())} for part in (reversed(parts) if rank else parts)], 0.1)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (_other_rate, r"optimizer 0, group 0, lr: 0\.1 on rank 0, 1\.1 on rank 1"),
        (_other_kind, "optimizer 0: Adam on rank 0, AdamW on rank 1"),
        (
            _other_groups,
            r"group 0, params: first\.weight, first\.bias on rank 0, second\.weight, second\.bias on rank 1",
        ),
    ],
)
def test_other_optimizers_on_other_ranks_are_refused(make: Any, text: str) -> None:
    """Optimizers of another kind, with other numbers or other groups on one rank are named before the first step."""

    def job(rank: int) -> None:
        net = Net()
        strategy = DDPStrategy()
        strategy.setup(None, ReferenceAccelerator(), (0, 1), PAIR)
        with pytest.raises(MisconfigurationException, match=text):
            strategy.engine(net, [make(rank, net)], [], ReferencePrecision(), PAIR, ReferenceEngine)

    run_ranks(job)


def test_lazy_layers_without_shapes_are_refused() -> None:
    """A lazy layer that has seen no batch is named, with what to do."""

    def job(rank: int) -> None:
        strategy = DDPStrategy()
        strategy.setup(None, ReferenceAccelerator(), (0, 1), PAIR)
        with pytest.raises(MisconfigurationException, match=r"none for 0\.weight, 0\.bias\. Run one batch"):
            strategy.shard(nn.Sequential(nn.LazyLinear(2)), ReferencePrecision(), False)

    run_ranks(job)


def _renamed(rank: int) -> nn.Module:
    return nn.ModuleDict({"b" if rank else "a": nn.Linear(2, 2)})


def _swapped(rank: int) -> nn.Module:
    names = ("b", "a") if rank else ("a", "b")
    return nn.ModuleDict({name: nn.Linear(2, 2) for name in names})


def _narrowed(rank: int) -> nn.Module:
    return nn.Linear(2, 2).to(torch.float16 if rank else torch.float32)


def _buffered(rank: int) -> nn.Module:
    return nn.BatchNorm1d(2, track_running_stats=not rank)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (_renamed, r"a\.weight: \(2, 2\) float32 on rank 0, none on rank 1"),
        (_swapped, r"another order: a\.weight on rank 0 where rank 1 has b\.weight"),
        (_narrowed, r"weight: \(2, 2\) float32 on rank 0, \(2, 2\) float16 on rank 1"),
        (_buffered, r"running_mean: \(2,\) float32 on rank 0, none on rank 1"),
    ],
)
def test_other_modules_are_named_on_every_rank(make: Any, text: str) -> None:
    """Another name, order, format or buffer on one rank is one error with both sides, the same on every rank."""

    def job(rank: int) -> str:
        strategy = DDPStrategy()
        strategy.setup(None, ReferenceAccelerator(), (0, 1), PAIR)
        with pytest.raises(MisconfigurationException, match=text) as caught:
            strategy.shard(make(rank), ReferencePrecision(), False)
        return str(caught.value)

    first, second = run_ranks(job)
    assert first == second


class NoHook:
    """State without a hook."""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model_averaging_period": 4}, "DDPStrategy(model_averaging_period): gradients are averaged in each step"),
        ({"accelerator": "cpu"}, "Write Trainer(accelerator=...)"),
        ({"parallel_devices": [torch.device("cpu")]}, "Write Trainer(devices=...)"),
        ({"cluster_environment": NoHook()}, "Got NoHook. Write Trainer(plugins=[...])"),
        ({"checkpoint_io": NoHook()}, "Write Trainer(plugins=[...])"),
        ({"precision_plugin": NoHook()}, "Write Trainer(precision=...)"),
        ({"device_ids": [0]}, "each rank has one device"),
        ({"process_group": NoHook()}, "the default process group is used"),
        ({"find_unused_params": True}, 'there is no such option. Did you mean "find_unused_parameters"?'),
        ({"static_graph": 1}, "DDPStrategy(static_graph): it must be True or False. Got 1."),
        ({"bucket_cap_mb": 0}, "it must be a number above 0"),
        ({"timeout": 30}, "Got 30. Write datetime.timedelta(minutes=30)."),
        ({"timeout": timedelta(0)}, "it must be a timedelta above 0"),
        ({"ddp_comm_hook": "fp16"}, "it must be a function. Got 'fp16'"),
        ({"ddp_comm_state": NoHook()}, "DDPStrategy(ddp_comm_state): it is a hook's state. Got no ddp_comm_hook."),
        ({"ddp_comm_wrapper": default_hooks.fp16_compress_wrapper}, "it wraps a hook. Got no ddp_comm_hook."),
        ({"ddp_comm_hook": post_localSGD_hook.post_localSGD_hook}, "under post-local SGD parameters differ"),
        ({"process_group_backend": "glo"}, 'Did you mean "gloo"?'),
        ({"process_group_backend": "cpu:gloo,cuda:nccx"}, "the backend must be one of gloo, nccl"),
        ({"start_method": "forkserver"}, "it must be one of 'popen', 'spawn', 'fork'. Got 'forkserver'."),
    ],
)
def test_wrong_options_say_what_to_write(options: dict[str, Any], text: str) -> None:
    """An option that is wrong, unknown, or a flag of the trainer's is refused when the strategy is made."""
    with pytest.raises(ConfigError) as caught:
        DDPStrategy(**options)
    assert text in str(caught.value)


def test_all_wrong_options_are_reported_at_once() -> None:
    """One error holds every wrong option, and a name of the strategy takes options too."""
    with pytest.raises(ConfigError) as caught:
        ddp.ddp_spawn(static_graph="yes", timeout=3, model_averaging_period=1)
    assert len(caught.value.problems) == 3


def test_defaults_of_other_trainers_are_accepted() -> None:
    """Options that this strategy has not are accepted at their defaults."""
    DDPStrategy(
        accelerator=None,
        parallel_devices=None,
        cluster_environment=None,
        checkpoint_io=None,
        precision_plugin=None,
        model_averaging_period=None,
        device_ids=None,
        output_device=None,
        dim=0,
        process_group=None,
        check_reduction=False,
        init_sync=True,
        mixed_precision=None,
    )


def test_the_backend_goes_by_the_device() -> None:
    """Without an option cards exchange by nccl and CPUs by gloo, which cards have beside it for what lies on CPUs."""
    assert backend_of(None, "cpu") == backend_of("gloo", "cpu") == "gloo"
    assert backend_of(None, "cuda") == backend_of("nccl", "cuda") == "cpu:gloo,cuda:nccl"
    assert backend_of("gloo", "cuda") == "gloo"
    assert backend_of("cpu:gloo,cuda:gloo", "cuda") == "cpu:gloo,cuda:gloo"


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        ("nccl", "nccl exchanges between cards, and this run is on CPUs. Got 'nccl'."),
        pytest.param(
            "mpi",
            "this build of torch must have the backend mpi",
            marks=pytest.mark.skipif(dist.is_mpi_available(), reason="this build has it"),
        ),
    ],
)
def test_an_absent_backend_is_a_problem_of_the_plan(backend: str, text: str) -> None:
    """A backend that the build has not, or that no CPU exchanges by, is a problem of a plan of several ranks alone."""
    strategy = DDPStrategy(process_group_backend=backend)
    (problem,) = strategy.problems(PAIR)
    assert text in str(problem)
    assert not strategy.problems(Plan())
    assert not DDPStrategy(process_group_backend="gloo").problems(PAIR)


def test_another_backend_makes_another_group() -> None:
    """A process group of ours that exchanges by another backend is made anew; by the same it stays."""

    def job(rank: int) -> None:
        groups: list[Any] = []
        for backend in (None, "cpu:gloo", "cpu:gloo", "gloo"):
            strategy = DDPStrategy(process_group_backend=backend)
            strategy.setup(None, ReferenceAccelerator(), (0, 1), PAIR)
            assert float(strategy.collectives.reduce(torch.tensor(1.0), "sum")) == 2.0
            groups.append(dist.group.WORLD)
            strategy.leave(None)
        a, b, c, d = groups
        assert a is not b is c is not d

    run_ranks(job)


def test_buffers_stay_each_ranks_own_where_asked() -> None:
    """With broadcast_buffers=False a batch of training leaves each rank's running means as they are."""

    def job(rank: int) -> list[list[float]]:
        found = []
        for shared in (True, False):
            net = nn.BatchNorm1d(4)
            engine = engine_of(net, broadcast_buffers=shared)
            with engine.window(True) or nullcontext():
                engine.backward(net(batches(rank)[0]).sum())
            engine.boundary()
            found.append(net.running_mean.tolist())
        return found

    first, second = run_ranks(job)
    assert first[0] == second[0]
    assert first[1] != second[1]


class Assigned(nn.Module):
    """Layer that assigns its running values anew, some of another size on each rank."""

    mean: Tensor
    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.register_buffer("mean", torch.zeros(4), persistent=False)
        self.register_buffer("cache", torch.zeros(1), persistent=False)
        self.register_buffer("tied", self.mean)

    def forward(self, x: Tensor, rank: int) -> Tensor:
        self.mean = self.mean + x.mean(0)
        self.cache = torch.ones(2 + rank)
        out: Tensor = self.layer(x).sum()
        return out


def test_assigned_buffers_are_shared_too() -> None:
    """A buffer that a step assigns anew is rank 0's everywhere; one that got another size stays each rank's own."""

    def job(rank: int) -> tuple[list[float], list[float]]:
        net = Assigned()
        engine = engine_of(net)
        for batch in batches(rank, 2):
            with engine.window(True) or nullcontext():
                engine.backward(net(batch, rank))
            engine.boundary()
        return net.mean.tolist(), net.cache.tolist()

    first, second = run_ranks(job)
    assert first[0] == second[0]
    assert sum(first[0])
    assert (len(first[1]), len(second[1])) == (2, 3)
