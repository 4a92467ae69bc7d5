"""Train one model in several processes that average their gradients."""

from __future__ import annotations

import multiprocessing
import os
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lt_accel.strategies.ddp import DDPStrategy
from lt_interface import MisconfigurationException, Plan
from lt_interface.testing import StrategyConformance
from lt_interface.testing.ranks import free_port, run_ranks
from lt_interface.testing.reference import ReferenceAccelerator, ReferenceEngine, ReferencePrecision


class TestDDPStrategy(StrategyConformance):
    def make(self) -> Any:
        return DDPStrategy()


PAIR = Plan(devices=(0, 1))


def joined(**options: Any) -> DDPStrategy:
    """Return a strategy that has joined the other rank."""
    strategy = DDPStrategy(**options)
    strategy.setup(None, ReferenceAccelerator(), (0, 1), PAIR)
    return strategy


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.second(self.norm(self.first(batch))).square().mean()


def engine_of(strategy: DDPStrategy, module: Any, *parts: Any) -> Any:
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts or (module,)]
    return strategy.engine(module, optimizers, [], ReferencePrecision(), PAIR, ReferenceEngine)


def test_every_rank_begins_with_the_first_ones_values() -> None:
    """Whatever each rank built, all train the parameters and buffers of rank 0."""

    def job(rank: int) -> list[Any]:
        torch.manual_seed(rank)
        net = Net()
        net.norm.running_mean.fill_(rank)
        return [t.tolist() for t in joined().shard(net, ReferencePrecision(), False).state_dict().values()]

    first, second = run_ranks(job)
    assert first == second
    assert [0.0] * 8 in first


def test_other_modules_on_other_ranks_are_refused() -> None:
    """Ranks that built modules of other shapes get one error that names a difference, in place of an abort."""

    def job(rank: int) -> None:
        joined().shard(Net(8 + rank), ReferencePrecision(), False)

    with pytest.raises(MisconfigurationException, match=r"first\.bias \(8,\)|first\.bias \(9,\)|every rank must build"):
        run_ranks(job)


def test_gradients_are_exchanged_once_a_window() -> None:
    """Inside a window each rank's gradients are its own; after its last backward pass they are the ranks' mean."""

    def job(rank: int) -> list[Any]:
        strategy = joined()
        torch.manual_seed(3)
        net = strategy.shard(Net(), ReferencePrecision(), False)
        engine = engine_of(strategy, net)
        inputs = torch.randn(2, 3, 6, 4)[rank]
        found = []
        for i, x in enumerate(inputs):
            last = i == 2
            with engine.window(last) or nullcontext():
                engine.backward(engine.call["training_step"](x, i))
            found.append([p.grad.flatten().tolist() for p in net.parameters()])
        return found

    first, second = run_ranks(job)
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert first[2] == second[2]


def test_gradients_without_a_window_are_exchanged() -> None:
    """A backward pass after a block without exchange is exchanged again, as manual optimization needs."""

    def job(rank: int) -> list[Any]:
        strategy = joined()
        net = strategy.shard(Net(), ReferencePrecision(), False)
        engine = engine_of(strategy, net)
        with engine.window(False):
            engine.backward(net.training_step(torch.full((2, 4), float(rank)), 0))
        net.zero_grad()
        engine.backward(net.training_step(torch.eye(4) * (rank + 1), 0))
        return [p.grad.flatten().tolist() for p in net.parameters()]

    first, second = run_ranks(job)
    assert first == second


def test_two_optimizers_train_their_parts_in_turn() -> None:
    """With several optimizers a loss may depend on one's part alone, on another's the next time."""

    def job(rank: int) -> list[Any]:
        strategy = joined()
        torch.manual_seed(3)
        net = strategy.shard(nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)}), ReferencePrecision(), False)
        engine = engine_of(strategy, net, net["a"], net["b"])
        for i in range(6):
            index, part = i % 2, net["ab"[i % 2]]
            for parameter in net.parameters():
                parameter.requires_grad_(any(parameter is p for p in part.parameters()))
            engine.optimizers[index].zero_grad()
            engine.backward(part(torch.full((3, 2), (rank + i + 1) / 8)).square().mean())
            engine.update(index, True)
        return [p.tolist() for p in net.parameters()]

    found = run_ranks(job)
    torch.manual_seed(3)
    expected = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
    for i in range(6):
        part = expected["ab"[i % 2]]
        loss = sum(part(torch.full((3, 2), (rank + i + 1) / 8)).square().mean() for rank in range(2)) / 2
        gradients = torch.autograd.grad(loss, list(part.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(part.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    assert found[0] == found[1]
    for value, parameter in zip(found[0], expected.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(value), parameter.detach(), rtol=0, atol=1e-6)


def test_unfrozen_parameters_train_with_a_new_engine() -> None:
    """An engine that is closed exchanges nothing any more; the next one exchanges what is trainable then."""

    def job(rank: int) -> list[Any]:
        strategy = joined()
        net = strategy.shard(Net(), ReferencePrecision(), False)
        net.first.requires_grad_(False)
        first = engine_of(strategy, net)
        first.backward(net.training_step(torch.eye(4) * (rank + 1), 0))
        first.close()
        net.first.requires_grad_(True)
        second = engine_of(strategy, net)
        net.zero_grad()
        second.backward(net.training_step(torch.eye(4) * (rank + 2), 0))
        second.close()
        after = [p.grad.flatten().tolist() for p in net.parameters()]
        net.zero_grad()
        net.training_step(torch.eye(4) * (rank + 2), 0).backward()  # exchanges nothing
        return [after, [p.grad.flatten().tolist() for p in net.parameters()]]

    first, second = run_ranks(job)
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_sparse_gradients_are_exchanged() -> None:
    """The gradients of an embedding with sparse=True are the ranks' mean."""

    def job(rank: int) -> Any:
        strategy = joined()
        torch.manual_seed(0)
        net = strategy.shard(nn.Embedding(4, 2, sparse=True), ReferencePrecision(), False)
        engine = engine_of(strategy, net)
        engine.backward(net(torch.tensor([rank, 3])).sum())
        return net.weight.grad.to_dense().tolist()

    first, second = run_ranks(job)
    assert first == second == [[0.5, 0.5], [0.5, 0.5], [0.0, 0.0], [1.0, 1.0]]


def test_the_group_stays_for_the_next_call_and_the_next_strategy() -> None:
    """Without an error the process group outlives a call; after one it is left at once, and joined anew."""

    def job(rank: int) -> list[float]:
        found, groups = [], []
        for error in (None, None, RuntimeError("failed"), None):
            strategy = joined()
            groups.append(dist.group.WORLD)
            found.append(float(strategy.collectives.reduce(torch.tensor(float(rank)), "sum")))
            strategy.collectives.agree(rank)
            strategy.leave(error)
            strategy.leave(error)
            assert dist.is_initialized() is (error is None)
        assert groups[0] is groups[1] is groups[2]
        assert groups[3] is not groups[0]
        return found

    assert run_ranks(job) == [[1.0] * 4] * 2


def test_leaving_after_an_error_waits_for_nobody() -> None:
    """A rank leaves after an error while another stands still, within seconds."""
    left = multiprocessing.get_context("fork").Event()

    def job(rank: int) -> None:
        strategy = joined()
        if rank == 1:
            assert left.wait(20)
            return
        strategy.collectives.agree(1)
        strategy.leave(RuntimeError("failed"))
        left.set()

    run_ranks(job, timeout=30)


def test_a_group_of_the_users_own_is_taken_and_left_alone() -> None:
    """A process group that the user made is used, also after an error; of another world it is refused."""

    def job(rank: int) -> None:
        dist.init_process_group("gloo")
        mine = dist.group.WORLD
        for _ in range(2):
            strategy = joined()
            assert float(strategy.collectives.reduce(torch.tensor(1.0), "sum")) == 2.0
            strategy.leave(RuntimeError("failed"))
            assert dist.group.WORLD is mine
        os.environ["RANK"] = str(1 - rank)
        with pytest.raises(MisconfigurationException, match="of the same world as the run"):
            joined()

    run_ranks(job)


def test_a_group_that_the_user_put_in_our_groups_place() -> None:
    """A group that the user made after one of ours was destroyed is taken for the user's, and left alone."""
    port = free_port()

    def job(rank: int) -> None:
        joined().leave(None)
        dist.destroy_process_group()
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        mine = dist.group.WORLD
        strategy = joined()
        assert float(strategy.collectives.reduce(torch.tensor(1.0), "sum")) == 2.0
        strategy.leave(RuntimeError("failed"))
        assert dist.group.WORLD is mine

    run_ranks(job)


def test_a_plan_of_more_ranks_than_stand_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices in one process are an error that says how to start two, and ranks without an address one too."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MisconfigurationException, match=r"2 processes, and WORLD_SIZE=1\. Start 2, set"):
        joined()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MisconfigurationException, match=r"MASTER_ADDR and MASTER_PORT\. Got None"):
        joined()
