"""Batch norm over all ranks: each layer's statistics are those of the window's whole batch, forward and backward.

Torch's ``SyncBatchNorm`` takes no tensors of the CPU, and it replaces modules, so that what holds one of them holds an
old one. Here a layer stays the object that it is and gets another class meanwhile: its own, with another ``forward``
behind it. So hooks, parametrizations, names and checkpoints are as without, and a class of the user's own that calls
``super().forward`` works. On CPUs (and where torch's kernels have none) that forward is written in differentiable
operations around one exchange: number of values, means and variances of each rank. On cards it is torch's.

A rank whose batch only repeats samples, since there were too few for all, takes part in the exchange and counts
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["SharedStatistics"]

Exchange = Callable[..., None]


class SharedStatistics:
    """Batch norm layers of a module that share their statistics, until they are given back.

    Args:
        module: The module, on its device.
        exchange: Calls a collective of torch.distributed with its arguments, and waits for it, in a group of all ranks
            that nothing else uses meanwhile.

    Attributes:
        layers: The layers, with their own classes.
        weight: What the batch on this rank counts; 0 for one that only repeats samples.
    """

    def __init__(self, module: nn.Module, exchange: Exchange) -> None:
        self.exchange, self.weight = exchange, 1.0
        found = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
        self.layers = [(layer, type(layer)) for layer in found]
        made: dict[tuple[type, bool], type] = {}
        for layer, own in self.layers:
            key = own, _on_card(layer)
            made[key] = made.get(key) or self._class(*key)
            layer.__class__ = made[key]

    def _class(self, own: type, on_card: bool) -> type:
        base = _TorchForward if on_card else _Forward
        bases = (base, own) if issubclass(own, nn.SyncBatchNorm) else (own, base)
        return type(own.__name__, bases, {"_shared": self, "_own": own, "__module__": own.__module__})

    def restore(self) -> None:
        """Give the layers their own classes back; a second call does nothing."""
        for layer, own in self.layers:
            layer.__class__ = own
        self.layers = []


def _on_card(layer: nn.Module) -> bool:
    tensors = [*layer.parameters(False), *layer.buffers(False)]
    return any(tensor.is_cuda for tensor in tensors)


class _Shared(_BatchNorm):
    """Layer whose copies, pickled or deep, are of its own class: they are no part of the run."""

    _shared: SharedStatistics
    _own: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        made: Any = super().__reduce_ex__(protocol)
        return object.__new__, (self._own,), *made[2:]

    def _factor(self) -> float:
        """Count the batch, and return how much of it goes into the running statistics."""
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)
        return self.momentum or 0.0


class _Forward(_Shared):
    """Forward pass in differentiable operations."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the statistics of all ranks' batches; in evaluation as without ranks."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        factor = self._factor()
        mean, variance, count = _statistics(input, self._shared)
        if count <= 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), factor)
                unbiased = variance.detach() * (count / (count - 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)
        shape = [1, -1] + [1] * (input.dim() - 2)
        output = (input - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            output = output * self.weight.view(shape)
        if self.bias is not None:
            output = output + self.bias.view(shape)
        return output.to(input.dtype)


class _TorchForward(nn.SyncBatchNorm, _Shared):
    """Forward pass of torch's ``SyncBatchNorm``, on cards."""

    process_group = None

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the statistics of all ranks' batches; a batch that counts nothing by those of its own."""
        if not self.training or self._shared.weight:
            return super().forward(input)
        # An empty batch takes part in the exchange of both passes, and counts nothing; what is returned has no weight.
        zeros, ones = input.new_zeros(self.num_features), input.new_ones(self.num_features)
        mine = nn.functional.batch_norm(input, zeros, ones, self.weight, self.bias)
        return mine + super().forward(input[:0]).sum()


def _statistics(input: Tensor, shared: SharedStatistics) -> tuple[Tensor, Tensor, float]:
    """Return mean and variance of each channel over all ranks, and from how many values each is."""
    channels = input.shape[1]
    wide = torch.promote_types(input.dtype, torch.float32)
    values = input.to(wide)
    axes = [axis for axis in range(values.dim()) if axis != 1]
    count = values.numel() // channels
    if count:
        variance, mean = torch.var_mean(values, axes, correction=0)
    else:
        mean = variance = values.sum(axes)
    own = torch.cat([mean, variance, mean.new_full((1,), count if shared.weight else 0)])
    every = _Gather.apply(own, shared)  # type: ignore[no-untyped-call]
    means, variances, counts = every[:, :channels], every[:, channels:-1], every[:, -1:].detach()
    total = counts.sum()
    share = counts / total.clamp(min=1)
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0), float(total)


class _Gather(torch.autograd.Function):
    """All ranks' values, by rank; each rank's gradient is the sum of what all ranks have for its values."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, shared: SharedStatistics) -> Tensor:
        ctx.shared = shared
        every = own.new_empty(dist.get_world_size(), own.numel())
        shared.exchange(dist.all_gather, list(every.unbind()), own.contiguous())
        return every

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _SumOfOwn.apply(gradients[0], ctx.shared), None  # type: ignore[no-untyped-call]


class _SumOfOwn(torch.autograd.Function):
    """Sum over the ranks of what they have for this rank."""

    @staticmethod
    def forward(ctx: Any, every: Tensor, shared: SharedStatistics) -> Tensor:
        ctx.shared = shared
        summed = every.clone(memory_format=torch.contiguous_format)
        shared.exchange(dist.all_reduce, summed)
        return summed[dist.get_rank()].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(gradients[0], ctx.shared), None  # type: ignore[no-untyped-call]
