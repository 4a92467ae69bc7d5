"""Find the metric objects of a module, and keep their exact state: what torchmetrics and ignite accumulate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lt_core.data.nested import move_to_device
from lt_core.metrics.slot import is_metric_object
from lt_interface.nested import items_of, rebuilt

__all__ = ["collect", "find", "restore", "untouched"]

# What an nn.Module itself keeps in its __dict__.
_MODULE_INTERNALS = frozenset(vars(nn.Module()))
_COUNTERS = ("_update_count", "_forward_cache")
_DEPTH = 4


def find(module: nn.Module) -> dict[str, Any]:
    """Return the metric objects in a module by their paths.

    Looked for are submodules, and attributes of any submodule, within lists, tuples and dicts too.
    """
    found: dict[int, tuple[str, Any]] = {}
    for path, each in module.named_modules():
        if is_metric_object(each) and each is not module:
            found.setdefault(id(each), (path, each))
        for name, value in vars(each).items():
            if name not in _MODULE_INTERNALS and name not in ("_metrics", "_trainer_ref"):
                for place, item in _plain_objects(value, f"{path}.{name}" if path else name, _DEPTH):
                    found.setdefault(id(item), (place, item))
    return dict(found.values())


def _plain_objects(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        if depth:
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                yield from _plain_objects(item, f"{path}[{key!r}]", depth - 1)
    elif not isinstance(value, type) and is_metric_object(value):
        yield path, value


def collect(module: nn.Module) -> dict[str, Any]:
    """Return the exact state of each metric object in a module, by path."""
    states = {path: _state(metric) for path, metric in find(module).items()}
    return {path: state for path, state in states.items() if state}


def restore(module: nn.Module, states: Mapping[str, Any]) -> None:
    """Give the metric objects of a module back the state that ``collect`` returned; all others are left alone."""
    found = find(module)
    for path, state in states.items():
        if path in found:
            _load(found[path], state)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Give the metric objects of a module, on exit, the state that they had on entry."""
    states = collect(module)
    try:
        yield
    finally:
        restore(module, states)


def _state(metric: Any) -> dict[str, Any]:
    defaults = getattr(metric, "_defaults", None)
    if isinstance(metric, nn.Module) and isinstance(defaults, dict):
        names = [*defaults, *(n for n in _COUNTERS if hasattr(metric, n))]
        # Without what was computed of it: ranks compute together, so none may answer from a store that others lack.
        return {"attributes": {name: _copied(getattr(metric, name)) for name in names} | {"_computed": None}}
    state = _state_dict(metric)
    return {"state_dict": _copied(state)} if state else {"attributes": _kept_attributes(metric)}


def _state_dict(metric: Any) -> dict[str, Any]:
    # ignite keeps a state_dict, but only of those metrics that name their attributes in it.
    try:
        state = metric.state_dict()
    except (AttributeError, NotImplementedError, TypeError):
        return {}
    return dict(state) if isinstance(state, Mapping) else {}


def _kept_attributes(metric: Any) -> dict[str, Any]:
    """Return the attributes that a checkpoint can hold; functions and such come from the constructor."""
    from lt_core.checkpoint.format.tree import try_encode

    kept = {k: v for k, v in getattr(metric, "__dict__", {}).items() if k not in _MODULE_INTERNALS}
    return {k: _copied(v) for k, v in kept.items() if try_encode(v, k) is None}


def _copied(value: Any) -> Any:
    """Return a copy of a tree of plain values and tensors, which later updates in place do not reach."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) is set:
        return set(value)
    items = items_of(value)
    return value if items is None else rebuilt(value, {key: _copied(item) for key, item in items.items()})


def _load(metric: Any, state: Mapping[str, Any]) -> None:
    if "state_dict" in state:
        metric.load_state_dict(_copied(state["state_dict"]))
        return
    for name, value in state["attributes"].items():
        device = _device_of(metric, name)
        setattr(metric, name, _copied(value) if device is None else move_to_device(_copied(value), device))


def _device_of(metric: Any, name: str) -> torch.device | None:
    now = getattr(metric, name, None)
    device = now.device if isinstance(now, Tensor) else getattr(metric, "device", getattr(metric, "_device", None))
    return device if isinstance(device, torch.device) else None
