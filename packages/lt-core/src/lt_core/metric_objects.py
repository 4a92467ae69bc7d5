"""Read metric objects, and keep their state: anything with update, compute and reset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from lt_interface.errors import Problem

__all__ = ["collect", "is_metric", "metric_value", "restore"]


def is_metric(value: Any) -> bool:
    """Return whether an object is a metric, of torchmetrics, ignite or the user's own."""
    return (
        not isinstance(value, (Tensor, int, float, str, type))
        and all(callable(getattr(value, name, None)) for name in ("update", "compute", "reset"))
        and not isinstance(value, dict)
    )


def metric_value(metric: Any, name: str, of_step: bool = False) -> float:
    """Return a metric's value: of all it saw, or of the step, where the metric keeps that.

    Raises:
        ValueError: If it is not a single number.
    """
    value = getattr(metric, "_forward_cache", None) if of_step else None
    if value is None:
        value = metric.compute()
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value.item())
    if hasattr(value, "__float__") and not isinstance(value, Tensor):
        return float(value)
    got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    fix = "Log its parts by name, for example with self.log_dict."
    raise ValueError(str(Problem(f"self.log({name!r})", "a metric must compute a single number", got, fix)))


def _found(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield every metric object below a module with its path, each once."""
    seen: set[int] = set()
    for path, child in module.named_modules():
        if path and is_metric(child) and id(child) not in seen:
            seen.add(id(child))
            yield path, child
    for owner_path, owner in module.named_modules():
        if is_metric(owner):
            continue
        for key, value in vars(owner).items():
            if key.startswith("_") and key not in ("_metrics_by_user",):
                continue
            prefix = f"{owner_path}.{key}" if owner_path else key
            for path, item in _inside(prefix, value):
                if id(item) not in seen:
                    seen.add(id(item))
                    yield path, item


def _inside(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(f"{path}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _inside(f"{path}.{index}", item)
    elif is_metric(value):
        yield path, value


def _is_torchmetrics(metric: Any) -> bool:
    return isinstance(getattr(metric, "_defaults", None), dict) and hasattr(metric, "_update_count")


def collect(module: nn.Module) -> dict[str, Any]:
    """Return the state of every metric object below a module, by path."""
    from lt_core.checkpoint.tree import try_encode

    states: dict[str, Any] = {}
    for path, metric in _found(module):
        if _is_torchmetrics(metric):
            names = [*metric._defaults, "_update_count", "_update_called", "_computed", "_forward_cache"]
            state = {n: metric.__dict__[n] for n in names if n in metric.__dict__}
        else:
            state = metric.state_dict() if callable(getattr(metric, "state_dict", None)) else {}
            if not state:
                state = {k: v for k, v in vars(metric).items() if try_encode(v, k) is None}
        states[path] = state
    return states


def restore(module: nn.Module, states: dict[str, Any]) -> None:
    """Give metric objects the state that ``collect`` returned; those that are gone are passed over."""
    for path, metric in _found(module):
        state = states.get(path)
        if state is None:
            continue
        own_loader = not _is_torchmetrics(metric) and callable(getattr(metric, "load_state_dict", None))
        if own_loader and metric.state_dict():
            metric.load_state_dict(state)
            continue
        for key, value in state.items():
            if isinstance(value, Tensor) and isinstance(metric.__dict__.get(key), Tensor):
                value = value.to(metric.__dict__[key].device)
            metric.__dict__[key] = value
