"""Compare batch norm over ranks with batch norm of one process over all their samples."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lt_accel.strategies.batch_norm import SharedStatistics
from lt_accel.strategies.ddp import DDPStrategy
from lt_interface import Plan
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.reference import ReferenceAccelerator, ReferencePrecision

PAIR = Plan(devices=(0, 1), sync_batchnorm=True)
SIZES = (3, 5)  # samples of the ranks


class Doubled(nn.BatchNorm2d):
    """Batch norm of a user's own, with a frame around the forward pass."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "1d": (lambda: nn.BatchNorm1d(4), ()),
    "1d with a length": (lambda: nn.BatchNorm1d(4), (6,)),
    "2d": (lambda: nn.BatchNorm2d(4), (3, 2)),
    "3d": (lambda: nn.BatchNorm3d(4), (2, 3, 2)),
    "without weights": (lambda: nn.BatchNorm1d(4, affine=False), ()),
    "without running statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (3, 2)),
    "cumulative": (lambda: nn.BatchNorm1d(4, momentum=None), ()),
    "a user's own": (lambda: Doubled(4), (3, 2)),
    "torch's shared one": (lambda: nn.SyncBatchNorm(4), (3, 2)),
}


def inputs(shape: tuple[int, ...]) -> Tensor:
    """Return the samples of both ranks, far from zero."""
    torch.manual_seed(5)
    return torch.randn(sum(SIZES), 4, *shape) * 3 + 7


def loss_of(output: Tensor) -> Tensor:
    """Return a loss that depends on each value in another way."""
    shape = output.shape[1:]
    return (output * torch.linspace(-1, 2, shape.numel()).reshape(shape)).sin().sum()


def passes(layer: Any, x: Tensor, times: int = 2) -> list[Tensor]:
    """Return output, gradients and buffers after some passes, and the output in evaluation."""
    x = x.clone().requires_grad_(True)
    for _ in range(times):
        output = layer(x)
        loss_of(output).backward()
    found = [output, x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]
    return [t.detach().clone() for t in found]


def plain(kind: str) -> Any:
    """Return the layer as one process runs it."""
    layer = LAYERS[kind][0]()
    return nn.BatchNorm2d(4) if isinstance(layer, nn.SyncBatchNorm) else layer


def joined(module: nn.Module) -> DDPStrategy:
    """Return a strategy that has joined the other rank and sharded a module."""
    strategy = DDPStrategy()
    strategy.setup(None, ReferenceAccelerator(), (0, 1), PAIR)
    strategy.shard(module, ReferencePrecision(), False)
    return strategy


def share(rank: int, x: Tensor) -> Tensor:
    """Return a rank's samples."""
    return x.split(SIZES)[rank]


def check(found: list[list[Tensor]], expected: list[Tensor], weights: int) -> None:
    """Compare what ranks found with what one process did: samples put together, gradients of weights summed."""
    for k, value in enumerate(expected):
        mine = [each[k] for each in found]
        together = torch.cat(mine) if k < 2 else mine[0] + mine[1] if k < 2 + weights else mine[0]
        torch.testing.assert_close(together, value, rtol=1e-5, atol=2e-5)
        if k >= 2 + weights:
            assert mine[0].equal(mine[1])


def as_numbers(values: list[Tensor]) -> list[Any]:
    """Return tensors as arrays, which travel as bytes."""
    return [value.numpy() for value in values]


def as_tensors(found: list[list[Any]]) -> list[list[Tensor]]:
    """Return what ranks sent as tensors again."""
    return [[torch.as_tensor(value) for value in each] for each in found]


def test_statistics_are_those_of_all_samples() -> None:
    """Output, gradients and running statistics of each kind of layer are those of one process with all samples."""

    def job(rank: int) -> dict[str, Any]:
        found = {}
        for kind, (make, shape) in LAYERS.items():
            layer = make()
            strategy = joined(layer)
            assert strategy.collective_forward
            found[kind] = as_numbers(passes(layer, share(rank, inputs(shape))))
            strategy.release(layer, [])
            assert type(layer) is type(make())
            assert not strategy.collective_forward
        return found

    ranks = run_ranks(job)
    for kind, (_, shape) in LAYERS.items():
        layer = plain(kind)
        expected = passes(layer, inputs(shape))
        check(as_tensors([each[kind] for each in ranks]), expected, len(list(layer.parameters())))


def test_frozen_and_evaluated_layers_exchange_nothing() -> None:
    """A layer in evaluation, inside a module that trains too, uses what it has; one rank alone may call it."""

    def job(rank: int) -> None:
        net = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False))
        joined(net)
        net.train()
        for layer in net:
            layer.eval()
        if rank == 0:
            x = inputs(())
            torch.testing.assert_close(net[0](x), x / (1 + net[0].eps) ** 0.5)
            torch.testing.assert_close(net[1](x), nn.BatchNorm1d(4, track_running_stats=False)(x))

    run_ranks(job)


def test_a_batch_of_no_weight_counts_nothing() -> None:
    """A rank whose batch only repeats samples, or is empty, leaves the statistics as the other rank's are."""

    def job(rank: int) -> list[Any]:
        layer = nn.BatchNorm1d(4)
        strategy = joined(layer)
        found = []
        for empty in (False, True):
            x = (inputs(())[: (3, 0 if empty else 1)[rank]]).requires_grad_(True)
            assert strategy.statistics is not None
            strategy.statistics.weight = 1.0 if empty else 1.0 - rank
            output = layer(x)
            (loss_of(output) * (1 - rank)).backward()
            found.append(output.detach().numpy())
            if rank == 0:
                found.append(x.grad.numpy())
        return [*found, layer.running_mean.numpy(), layer.running_var.numpy()]

    first, second = run_ranks(job)
    layer, expected = nn.BatchNorm1d(4), []
    for _ in range(2):
        x = inputs(())[:3].requires_grad_(True)
        output = layer(x)
        loss_of(output).backward()
        expected += [output.detach().numpy(), x.grad.numpy()]
    expected += [layer.running_mean.numpy(), layer.running_var.numpy()]
    for mine, value in zip(first, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(mine), torch.as_tensor(value), rtol=1e-5, atol=1e-5)
    assert (first[-1] == second[-1]).all()
    assert second[1].shape == (0, 4)


def test_one_value_in_all_is_refused_on_every_rank() -> None:
    """Where all ranks together have one value a channel, each gets the error that one process gets."""

    def job(rank: int) -> None:
        layer = nn.BatchNorm1d(4)
        joined(layer)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(torch.ones(1 - rank, 4))
        assert layer(torch.ones(1, 4)).shape == (1, 4)

    run_ranks(job)


def test_gradients_of_gradients_and_checkpoints() -> None:
    """A penalty on gradients, and activations that are computed again in the backward pass, are as in one process."""

    def penalised(layer: Any, x: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_(True)
        output = checkpoint(layer, x, use_reentrant=False)
        loss = loss_of(output)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + (gradient**3).sum()).backward()
        return [output.detach(), x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]

    def job(rank: int) -> list[Any]:
        layer = nn.BatchNorm2d(4)
        joined(layer)
        return as_numbers(penalised(layer, share(rank, inputs((2, 2)))))

    expected = penalised(nn.BatchNorm2d(4), inputs((2, 2)))
    check(as_tensors(run_ranks(job)), expected, 2)


def test_formats_are_those_of_the_layer_alone() -> None:
    """Inputs of 16 bits give outputs of 16 bits, whose statistics were taken in 32."""

    def job(rank: int) -> Any:
        layer = nn.BatchNorm1d(4)
        joined(layer)
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(share(rank, inputs(())).bfloat16())
        assert output.dtype == torch.bfloat16
        return output.detach().float().numpy()

    expected = nn.BatchNorm1d(4)(inputs(()).bfloat16())
    found = torch.cat([torch.as_tensor(part) for part in run_ranks(job)])
    torch.testing.assert_close(found, expected.float(), rtol=2e-2, atol=2e-2)


def test_copies_are_no_part_of_the_run() -> None:
    """A copy of the module, deep or pickled, has the plain layers of the user; after an error the module has, too."""

    def job(rank: int) -> None:
        net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))
        before = list(net.state_dict())
        strategy = joined(net)
        assert isinstance(net[0], nn.BatchNorm1d)
        assert type(net[0]) is not nn.BatchNorm1d
        assert list(net.state_dict()) == before
        for made in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert type(made[0]) is nn.BatchNorm1d
            if rank == 0:
                made(torch.eye(4))
        strategy.leave(RuntimeError("failed"))
        assert type(net[0]) is nn.BatchNorm1d

    run_ranks(job)


def test_other_runs_share_nothing() -> None:
    """Statistics are shared in a fit of several ranks alone, and a module without batch norm computes alone."""

    def job(rank: int) -> None:
        for plan, net in (
            (Plan(devices=(0, 1), sync_batchnorm=True, stage="test"), nn.BatchNorm1d(4)),
            (Plan(devices=(0, 1)), nn.BatchNorm1d(4)),
        ):
            strategy = DDPStrategy()
            strategy.setup(None, ReferenceAccelerator(), (0, 1), plan)
            strategy.shard(net, ReferencePrecision(), False)
            assert type(net) is nn.BatchNorm1d
            assert not strategy.collective_forward
        assert not joined(nn.Linear(2, 2)).collective_forward

    run_ranks(job)


def test_no_problem_is_found_in_a_plan_with_shared_statistics() -> None:
    """sync_batchnorm is no problem of a plan, alone or on several ranks, and giving layers back twice is harmless."""
    assert not DDPStrategy().problems(PAIR)
    layer = nn.BatchNorm1d(4)
    shared = SharedStatistics(layer, lambda *args: None)
    shared.restore()
    shared.restore()
    assert type(layer) is nn.BatchNorm1d
