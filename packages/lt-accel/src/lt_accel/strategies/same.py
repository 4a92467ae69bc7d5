"""What must be the same on every rank, compared before the first exchange whose size depends on it; rank 0's values.

An exchange of tensors of other sizes ends the process without a word, and one of other tensors of the same sizes goes
unnoticed. So names, shapes and formats are compared first, as objects that may differ in size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lt_interface import Collectives, MisconfigurationException, Problem

__all__ = [
    "FREEZE_ALIKE",
    "check_module",
    "check_optimizers",
    "check_same",
    "check_trainable",
    "copy_from_first",
    "drifted",
]

_PART = 16 << 20  # bytes of one exchange
_SHOWN = 5
_ROUNDING = 1e-4  # of a parameter's norm; machines that are not alike round differently
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
FREEZE_ALIKE = "Freeze and unfreeze without looking at the rank."


def check_module(module: nn.Module, collectives: Collectives) -> None:
    """Compare the names, shapes and formats of parameters and buffers.

    Args:
        module: The module as this rank built it.
        collectives: The exchange between the ranks.

    Raises:
        MisconfigurationException: On every rank, if one built another module than rank 0, or a lazy layer has no shape.
    """
    lazy = [name for name, p in module.named_parameters() if is_lazy(p)]
    lazy += [name for name, b in module.named_buffers() if is_lazy(b)]
    if lazy:
        rule, fix = "lazy layers must know their shapes before ranks compare them", "Run one batch through it in setup."
        raise MisconfigurationException(
            Problem(type(module).__name__, rule, f"none for {', '.join(lazy[:_SHOWN])}", fix)
        )
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    mine = {name: f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for name, t in tensors.items()}
    check_same(
        type(module).__name__, "build the same module", mine, collectives, "Build it without looking at the rank."
    )


def check_trainable(module: nn.Module, collectives: Collectives) -> None:
    """Compare which parameters are trained.

    Args:
        module: The module.
        collectives: The exchange between the ranks.

    Raises:
        MisconfigurationException: On every rank, if one trains other parameters than rank 0.
    """
    mine = {name: "trained" if p.requires_grad else "frozen" for name, p in module.named_parameters()}
    check_same(type(module).__name__, "train the same parameters", mine, collectives, FREEZE_ALIKE)


def check_optimizers(
    module: nn.Module, optimizers: Iterable[Optimizer], collectives: Collectives, changed: bool = False
) -> None:
    """Compare the optimizers' kinds, parameters and numbers, such as learning rates.

    Args:
        module: The module.
        optimizers: The user's optimizers.
        collectives: The exchange between the ranks.
        changed: Whether they were the same before.

    Raises:
        MisconfigurationException: On every rank, if one has others than rank 0.
    """
    names = {id(p): name for name, p in module.named_parameters()}
    mine: dict[str, str] = {}
    for i, optimizer in enumerate(optimizers):
        mine[f"optimizer {i}"] = type(optimizer).__name__
        for k, group in enumerate(getattr(optimizer, "param_groups", ())):
            where = f"optimizer {i}, group {k}"
            mine[f"{where}, params"] = ", ".join(names.get(id(p), f"{tuple(p.shape)}") for p in group["params"])
            mine |= {f"{where}, {key}": _shown(v) for key, v in group.items() if key != "params" and _is_plain(v)}
    if changed:
        where, rule, fix = ".optimizers", "keep the same optimizers", "Change them on every rank in the same way."
    else:
        where, rule, fix = ".configure_optimizers", "make the same optimizers", "Make them without looking at the rank."
    check_same(type(module).__name__ + where, rule, mine, collectives, fix)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return (
        value is None or isinstance(value, bool | int | float | str) or (isinstance(value, Tensor) and not value.dim())
    )


def _shown(value: object) -> str:
    return str(float(value)) if isinstance(value, Tensor) else str(value)


def check_same(where: str, rule: str, mine: Mapping[str, str], collectives: Collectives, fix: str) -> None:
    """Compare what this rank has with what the others have, the order included.

    Args:
        where: The place, as a message begins.
        rule: What every rank must do.
        mine: What this rank has, by name.
        collectives: The exchange between the ranks.
        fix: A whole sentence.

    Raises:
        MisconfigurationException: On every rank, if one has something else than rank 0; it names ranks and differences.
    """
    listed = list(mine.items())
    if not collectives.any(collectives.broadcast_object(listed) != listed):
        return
    every = collectives.gather_object(listed)
    rank = next(r for r, each in enumerate(every) if each != every[0])
    raise MisconfigurationException(
        Problem(where, f"every rank must {rule}", _difference(dict(every[0]), dict(every[rank]), rank), fix)
    )


def _difference(first: dict[str, str], other: dict[str, str], rank: int) -> str:
    differ = [name for name in {**first, **other} if first.get(name) != other.get(name)]
    parts = [
        f"{name}: {first.get(name, 'none')} on rank 0, {other.get(name, 'none')} on rank {rank}" for name in differ
    ]
    if not parts:
        pairs = zip(first, other, strict=True)
        name, instead = next((a, b) for a, b in pairs if a != b)
        parts = [f"another order: {name} on rank 0 where rank {rank} has {instead}"]
    more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return "; ".join(parts[:_SHOWN]) + more


def drifted(module: nn.Module, collectives: Collectives) -> str:
    """Return which parameters no longer have the same values on every rank, with their means; empty if none.

    Their bits are summed, which costs one reading of the weights and one exchange of a number each.

    Args:
        module: The module.
        collectives: The exchange between the ranks.
    """
    held = [(name, p.detach()) for name, p in module.named_parameters() if p.numel()]
    if not held:
        return ""
    every = collectives.all_gather(torch.stack([_bits(p) for _, p in held]))
    unlike = (every != every[0]).any(0).tolist()
    found = [(name, p) for (name, p), differs in zip(held, unlike, strict=True) if differs and _is_far(p, collectives)]
    if not found:
        return ""
    shown = collectives.gather_object([f"{p.double().mean().item():.9g}" for _, p in found[:_SHOWN]])
    parts = (
        f"{name}: mean {', '.join(f'{means[i]} on rank {rank}' for rank, means in enumerate(shown))}"
        for i, (name, _) in enumerate(found[:_SHOWN])
    )
    return "; ".join(parts) + (f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


def _bits(tensor: Tensor) -> Tensor:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.contiguous().view(_INTEGERS[real.element_size()]).sum(dtype=torch.int64)


def _is_far(tensor: Tensor, collectives: Collectives) -> bool:
    """Return whether a rank's values are further from the ranks' mean than rounding brings them."""
    mean = collectives.reduce(tensor)
    return collectives.any(not bool((tensor - mean).norm() <= _ROUNDING * mean.norm()))


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
        if size >= _PART:
            yield part
            part, size = [], 0
    if part:
        yield part
