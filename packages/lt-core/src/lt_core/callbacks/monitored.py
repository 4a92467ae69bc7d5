"""Find the metric that a callback monitors, and say what is there when it is not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lt_interface.errors import MisconfigurationException, Problem, nearest

if TYPE_CHECKING:
    from lt_core.trainer import Trainer

__all__ = ["MonitorError", "candidates", "missing"]


class MonitorError(MisconfigurationException, RuntimeError):
    """Error of a monitored metric that was never logged."""


def candidates(trainer: Trainer) -> dict[str, Tensor]:
    """Return what can be monitored or named in a file: all logged metrics, ``epoch`` and ``step``."""
    found = dict(trainer.callback_metrics)
    for name, count in (("epoch", trainer.current_epoch), ("step", trainer.global_step)):
        logged = found.get(name)
        found[name] = torch.tensor(count) if logged is None else logged.int()
    return found


def missing(where: str, monitor: str, keys: Iterable[str]) -> str:
    """Return the sentence for a metric that is not there, with the keys that are."""
    known = sorted(set(keys) - {"epoch", "step"})
    there = f"Logged are: {', '.join(known)}." if known else "Nothing is logged so far."
    fix = f"{there} {nearest(monitor, known)}".rstrip()
    fix += f' Write self.log("{monitor}", value) in the module.'
    return str(Problem(where, "no metric of that name was logged", fix=fix))


def snapshot(value: Any) -> Tensor:
    """Return a metric as a 0-dim tensor on the CPU that nobody else holds."""
    tensor: Tensor = torch.as_tensor(value).detach()
    return tensor.to("cpu", copy=True).reshape(())
