"""Exchange between ranks over torch.distributed.

Tensors travel as bytes wherever nothing is computed (gather, broadcast), so that every format works on every backend.
Where something is computed they travel in a format that all backends can reduce: whole numbers, or 32 bits and more.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lt_accel.peers import Peers, everyone
from lt_interface import BARRIER_SECONDS, MisconfigurationException

__all__ = ["ProcessGroupCollectives"]

T = TypeVar("T")
_OPS = {"mean": dist.ReduceOp.SUM, "sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}
_WIRE = {torch.float32, torch.float64, torch.int32, torch.int64}


class ProcessGroupCollectives:
    """Exchange over the default process group, and over others by name.

    Args:
        peers: What exchanges the flags of `agree` and of barriers, in a group of its own: they must not queue behind
            other traffic. It also waits for all other exchanges, since a rank may fail meanwhile.
        groups: Process groups by name. ``"data"``, the ranks that receive different samples, is the default group
            unless given here; ``"all"`` always is.
    """

    def __init__(self, peers: Peers, groups: Mapping[str, Any] | None = None) -> None:
        # The default group is not held: its connections close where it is left, whoever keeps a used trainer.
        self._groups: dict[str, Any] = {"data": None, **(groups or {}), "all": None}
        self._peers = peers
        self._sent = False

    def _members(self, group: Any) -> Callable[[], Any]:
        """Return what returns a process group."""
        if not isinstance(group, str):
            return lambda: group
        if group not in self._groups:
            known = ", ".join(map(repr, self._groups))
            raise MisconfigurationException(
                f"collectives: a group is a process group or one of {known}. Got {group!r}. Give one of these."
            )
        return lambda: self._groups[group] or dist.group.WORLD

    def reduce(self, tensor: Tensor, op: str = "mean", group: Any = "data") -> Tensor:
        """Return the reduction of a tensor over all ranks; the mean of whole numbers is a floating-point tensor.

        Raises:
            MisconfigurationException: If operation or group is unknown, or complex numbers are compared.
        """
        members = self._members(group)
        if op not in _OPS or (tensor.is_complex() and op in ("min", "max")):
            raise MisconfigurationException(
                f'collectives.reduce: op is "mean", "sum", "min" or "max", for complex numbers one of the first two. '
                f'Got {op!r} of {tensor.dtype}. Write op="mean".'
            )
        size = dist.get_world_size(members())
        wire = tensor.detach().to(_wire_format(tensor.dtype, op), copy=True, memory_format=torch.contiguous_format)
        self._peers.exchange(dist.all_reduce, wire, _OPS[op], group=members)
        if op == "mean":
            wire /= size
        return wire.to(_result_format(tensor.dtype, op))

    def all_gather(self, tensor: Tensor, group: Any = "data", sync_grads: bool = False) -> Tensor:
        """Return the ranks' tensors, stacked ``(ranks, *tensor.shape)``."""
        members = self._members(group)
        if sync_grads and torch.is_grad_enabled() and tensor.requires_grad:
            gathered: Tensor = _Gather.apply(tensor, members, self._peers)  # type: ignore[no-untyped-call]
            return gathered
        return _gather(tensor, members, self._peers)

    def broadcast_object(self, obj: T, src: int = 0) -> T:
        """Return one rank's object on every rank."""
        sends = dist.get_rank() == src
        data = _pickled(obj) if sends else None
        device = _device_of(dist.group.WORLD)
        size = int(self._from(src, torch.tensor([0 if data is None else len(data)], device=device)))
        data = self._from(src, torch.empty(size, dtype=torch.uint8, device=device) if data is None else data)
        return obj if sends else pickle.loads(data.cpu().numpy().tobytes())

    def gather_object(self, obj: T) -> list[T]:
        """Return what every rank gives, by rank."""
        data = _pickled(obj)
        sizes = _gather(torch.tensor(len(data), device=data.device), everyone, self._peers).tolist()
        every = _gather(nn.functional.pad(data, (0, max(sizes) - len(data))), everyone, self._peers).cpu()
        found = [pickle.loads(row[:size].numpy().tobytes()) for row, size in zip(every, sizes, strict=True)]
        found[dist.get_rank()] = obj
        return found

    def _from(self, src: int, tensor: Tensor) -> Tensor:
        """Fill a tensor with one rank's values."""
        self._peers.exchange(dist.broadcast, tensor, src)
        return tensor

    def barrier(self, name: str = "", timeout: float = BARRIER_SECONDS) -> None:
        """Wait for every rank.

        Raises:
            TimeoutError: If a rank does not come in time; it names those that are missing.
        """
        self._peers.meet(f"barrier {name!r}", timeout)

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set on any rank."""
        return bool(self.reduce(torch.tensor(int(flag), dtype=torch.int32), "max", "all"))

    def agree(self, bits: int) -> int:
        """Return the bits that any rank gave in the call before, 0 in the first one; send this rank's."""
        before = self.settle()
        self._peers.send_flags(bits)
        self._sent = True
        return before

    def settle(self) -> int:
        """Wait for the flags that are on their way, and return them; no flags are on their way afterwards."""
        if not self._sent:
            return 0
        self._sent = False
        return self._peers.receive_flags()

    def close(self) -> None:
        """Let go of all groups but the one for flags, so that their connections can close."""
        self._groups.clear()


class _Gather(torch.autograd.Function):
    """Gathering whose gradient goes back to the rank that each part came from."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Callable[[], Any], peers: Peers) -> Tensor:
        ctx.group, ctx.peers = group, peers
        return _gather(tensor, group, peers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        ctx.peers.exchange(dist.all_reduce, summed, group=ctx.group)
        return summed[dist.get_rank(ctx.group())], None, None


def _gather(tensor: Tensor, group: Callable[[], Any], peers: Peers) -> Tensor:
    sent = _bytes_of(tensor)
    found = sent.new_empty(dist.get_world_size(group()), sent.numel())
    if sent.numel():
        peers.exchange(dist.all_gather, list(found.unbind()), sent, group=group)
    return _of_bytes(found.reshape(-1), tensor.dtype, (len(found), *tensor.shape))


def _device_of(group: Any) -> torch.device:
    """Return where a group exchanges plain bytes: on the CPU, where one of its backends does."""
    kinds = dist.get_backend_config(group)
    return torch.device("cpu" if "cpu:" in kinds else torch.accelerator.current_accelerator() or "cpu")


def _pickled(obj: Any) -> Tensor:
    """Return an object as bytes, where the default group exchanges them."""
    data = torch.frombuffer(bytearray(pickle.dumps(obj)), dtype=torch.uint8)
    return data.to(_device_of(dist.group.WORLD))


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _of_bytes(data: Tensor, dtype: torch.dtype, shape: Any) -> Tensor:
    return data.view(dtype).reshape(shape)


def _wire_format(dtype: torch.dtype, op: str) -> torch.dtype:
    """Return the format in which a backend reduces."""
    if dtype in _WIRE and (op != "mean" or dtype.is_floating_point):
        return dtype
    if dtype.is_complex:
        return torch.complex128 if dtype == torch.complex128 else torch.complex64
    if dtype.is_floating_point:
        return torch.float32
    return torch.float64 if op == "mean" else torch.int64


def _result_format(dtype: torch.dtype, op: str) -> torch.dtype:
    """Return the format of a result: the tensor's own, where it can hold one."""
    if op == "mean" and not (dtype.is_floating_point or dtype.is_complex):
        return torch.get_default_dtype()
    return torch.int64 if op == "sum" and dtype == torch.bool else dtype
