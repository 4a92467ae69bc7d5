"""Measure what the way in which an optimizer is built costs each step.

How: tensors of the parameters' shapes are made on their device, without drawing a random number, and stepped by a
plain optimizer of torch of the same class and options: as it is built, with its groups joined, and in its fused or
foreach form. The user's optimizer and parameters are only looked at. At most `_TENSORS` tensors of `_ELEMENTS`
elements together are made, large ones smaller, and the time is scaled by how many there are: what is measured is the
price of calls. A measurement ends after `_SECONDS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import suppress
from math import prod
from time import perf_counter, thread_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lt_core.optim.merge import merge_groups

__all__ = ["MANY", "price"]

MANY = 100  # tensors; with fewer there is little to gain
_SECONDS = 0.03  # each of at most four ways
_TENSORS, _ELEMENTS = 128, 2**20
_RATIO, _SAVED = 1.5, 1e-3  # what is worth a line: times, and seconds a step
_FORMS = ("fused", "foreach")


def price(optimizer: Any, module: nn.Module) -> str | None:
    """Return a sentence on how an optimizer could be built so that its steps are much shorter; None if it is fine.

    Args:
        optimizer: The optimizer; nothing of it changes.
        module: The module whose parameters it holds.

    Returns:
        The measured time of a step as it is and as it could be, and what to write.
    """
    kind = _kind(optimizer)
    if kind is None:
        return None
    groups = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in optimizer.param_groups]
    groups = [group for group in groups if group["params"]]
    tensors = [p for group in groups for p in group["params"]]
    if len(tensors) < MANY or not all(map(_is_plain, tensors)):
        return None
    joined = merge_groups(groups)
    many = len(groups) - len(joined) >= MANY // 2
    forms = _unused(optimizer, groups, module)
    if not many and not forms:
        return None
    whole = _seconds(kind, groups, "")
    way = joined if many else groups
    best, form = (_seconds(kind, way, ""), "") if many else (whole, "")
    for each in forms:
        if not form and _pays(best, took := _seconds(kind, way, each)):
            best, form = took, each
    if not _pays(whole, best):
        return None
    changes = [f"its {len(groups)} parameter groups joined where their options are equal"] if many else []
    changes += [f"{form}=True"] if form else []
    name = type(optimizer).__name__
    built = f"{name}(..., {form}=True)" if form else f"{name}(...)"
    shrunk = any(p.numel() > _most(len(tensors)) for p in tensors)
    size = f" on tensors of at most {_most(len(tensors)):,} elements" if shrunk else ""
    return (
        f"{name}: a step of its {len(tensors)} tensors takes {1e3 * whole:.1f} ms, and {1e3 * best:.1f} ms with "
        f"{' and '.join(changes)}: {whole / best:.1f} times less, as measured here{size}. "
        f"Write: {f'lt_core.optim.merge_groups({built})' if many else built}."
    )


def _kind(optimizer: Any) -> Any:
    """Return the class of torch whose step an optimizer has, if it is one that steps many tensors at once."""
    kinds: list[Any] = [kind for kind in type(optimizer).__mro__ if kind.__module__.startswith("torch.optim.")]
    if not kinds or kinds[0] is Optimizer or "foreach" not in optimizer.defaults:
        return None
    return kinds[0] if inspect.unwrap(kinds[0].step) is inspect.unwrap(type(optimizer).step) else None


def _is_plain(parameter: Any) -> bool:
    """Return whether a parameter is an ordinary tensor, all of it here."""
    return type(parameter.data) is Tensor and not parameter.is_meta and not nn.parameter.is_lazy(parameter)


def _unused(optimizer: Any, groups: list[dict[str, Any]], module: nn.Module) -> list[str]:
    """Return the forms that could be used and are not: what a user switched off is left off."""
    if any(group.get(form) for group in groups for form in (*_FORMS, "differentiable")):
        return []
    if any(getattr(part, "sparse", False) is True for part in module.modules()):  # of sparse gradients there is no form
        return []
    first = groups[0]
    if first.get("foreach") is None and first.get("fused") is None and _is_foreach_by_default(first["params"]):
        return []
    return [form for form in _FORMS if all(form in group and group[form] is None for group in groups)]


def _is_foreach_by_default(parameters: list[Tensor]) -> bool:
    from torch.optim.optimizer import _default_to_fused_or_foreach

    return any(_default_to_fused_or_foreach(parameters, False))


def _pays(before: float, after: float) -> bool:
    return after * _RATIO <= before and before - after >= _SAVED


def _seconds(kind: Any, groups: list[dict[str, Any]], form: str) -> float:
    """Return the shortest of some steps of an optimizer that is built like this; infinite if there is none."""
    best = float("inf")
    with suppress(Exception), torch.no_grad():
        count = sum(len(group["params"]) for group in groups)
        copies = [{**group, **({form: True} if form else {}), "params": []} for group in groups]
        for number, parameter in _sample(groups, count):
            copies[number]["params"].append(parameter)
        stand_in = kind([group for group in copies if group["params"]])
        step = getattr(kind.step, "__wrapped__", kind.step)  # without the hooks that users set for all optimizers
        taken = [p for group in stand_in.param_groups for p in group["params"]]
        clock = thread_time if taken[0].device.type == "cpu" else perf_counter  # others may keep the CPU busy
        end = perf_counter() + _SECONDS
        step(stand_in)  # makes the states
        while True:
            start = clock()
            step(stand_in)
            taken[-1].view(-1)[0].item()  # a device has finished
            best = min(best, (clock() - start) * count / len(taken))
            if perf_counter() > end:
                break
    return best


def _every(count: int) -> int:
    """Return of how many parameters one is measured."""
    return -(-count // _TENSORS)


def _most(count: int) -> int:
    """Return how many elements a tensor has at most."""
    return max(1, _ELEMENTS * _every(count) // count)


def _sample(groups: list[dict[str, Any]], count: int) -> Iterator[tuple[int, Tensor]]:
    """Yield tensors like some parameters, each with a gradient and the number of its group."""
    most = _most(count)
    pairs = [(number, p) for number, group in enumerate(groups) for p in group["params"]]
    for number, parameter in pairs[:: _every(count)]:
        shape = list(parameter.shape)
        while (size := prod(shape)) > most:
            longest = shape.index(max(shape))
            shape[longest] = max(1, shape[longest] * most // size)
        copy = torch.full(shape, 0.5, dtype=parameter.dtype, device=parameter.device)
        copy.grad = torch.full_like(copy, 1e-3)
        yield number, copy
