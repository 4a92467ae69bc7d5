"""Join parameter groups of equal options, of which each costs a step its own calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, overload

from torch import Tensor
from torch.optim import Optimizer

from lt_interface import ConfigError, Problem

__all__ = ["merge_groups", "option_key"]

AnOptimizer = TypeVar("AnOptimizer", bound=Optimizer)
_WHERE = "lt_core.optim.merge_groups"
_HOLDS = ("params", "param_names")  # what a group holds; the rest are its options


@overload
def merge_groups(groups: AnOptimizer) -> AnOptimizer: ...
@overload
def merge_groups(groups: Iterable[Any]) -> list[dict[str, Any]]: ...
def merge_groups(groups: Any) -> Any:
    """Join parameter groups whose options are equal; training stays the same to the bit.

    A joined group stands where the first of its groups stood, its parameters in their order, with their names. Options
    are equal if they have the same type and value; groups of which only one names an option stay apart, and so do those
    of different ``"name"``. Where groups that did not follow one another are joined, parameters come in another order,
    so that the norm by which gradients are clipped may differ in its last bit.

    Args:
        groups: What an optimizer takes as its first argument: groups, or parameters, with or without names. Or an
            optimizer, whose groups are joined in place: its states stay with their parameters. A scheduler counts the
            groups, so it comes later. A ``state_dict`` has the groups of its time: one of unmerged groups is loaded
            before they are joined, and a run is resumed with the groups that its checkpoint was written with.

    Returns:
        New groups, the given ones left as they were; or the optimizer.

    Raises:
        ConfigError: If a parameter is in two groups, or a scheduler has counted the optimizer's groups.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 1))
        >>> each = [{"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0} for p in net.parameters()]
        >>> optimizer = torch.optim.AdamW(merge_groups(each), lr=1e-3)
        >>> [len(group["params"]) for group in optimizer.param_groups]
        [2, 2]
    """
    if not isinstance(groups, Optimizer):
        return _merged(list(groups))
    if hasattr(groups.step, "_wrapped_by_lr_sched"):
        rule = "the groups of an optimizer are joined before it gets a learning-rate scheduler, which counts them"
        raise ConfigError(Problem(_WHERE, rule, type(groups).__name__, "Call this first."))
    groups.param_groups[:] = _merged(groups.param_groups)
    return groups


def _merged(groups: list[Any]) -> list[dict[str, Any]]:
    """Return new groups, those of equal options joined."""
    if groups and not isinstance(groups[0], Mapping):
        groups = [{"params": groups}]
    merged: dict[Any, dict[str, Any]] = {}
    seen: set[int] = set()
    for group in groups:
        params = group["params"]
        if isinstance(params, set):
            raise ConfigError(Problem(_WHERE, "parameters need an order", "a set", "Write a list."))
        params = [params] if isinstance(params, Tensor) else list(params)
        ids = {id(p[1] if isinstance(p, tuple) else p) for p in params}
        if not seen.isdisjoint(ids):
            raise ConfigError(Problem(_WHERE, "each parameter must be in one group", fix="Leave it out of the others."))
        seen |= ids
        options = {key: value for key, value in group.items() if key not in _HOLDS}
        joined = merged.setdefault((option_key(options), "param_names" in group), {**options, "params": []})
        joined["params"] += params
        if "param_names" in group:
            joined["param_names"] = [*joined.get("param_names", []), *group["param_names"]]
    return list(merged.values())


def option_key(value: Any) -> Any:
    """Return what is equal for values of the same type and content, and can be looked up."""
    if isinstance(value, Mapping):
        return type(value), frozenset((key, option_key(each)) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), *map(option_key, value)
    if isinstance(value, Tensor):
        return Tensor, value.dtype, value.device, tuple(value.shape), repr(value.tolist())
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), repr(value) if isinstance(value, float) else value  # nan equals itself, and 0.0 not -0.0
