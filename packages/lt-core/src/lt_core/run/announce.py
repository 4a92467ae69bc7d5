"""Report which devices a run uses, and what is known of an error that ends it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from lt_core.notices import info
from lt_interface import registry
from lt_interface.accelerator import DescribesDevices, ExplainsErrors

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["announce", "explain"]


def announce(run: Run) -> None:
    """Write on rank 0 one line on the devices that are used and those that are not, and advice; each once a process.

    There is no line where it would only repeat what the user wrote, as ``accelerator="cpu"`` beside no other device.
    """
    trainer, plan = run.trainer, run.plan
    if trainer._announced or not run.world.is_global_zero:
        return
    trainer._announced = True
    own = trainer.accelerator
    used = [run.device] if len(plan.devices) == 1 else list(dict.fromkeys(map(own.device, plan.devices)))
    line = f"Device{'s' * (len(used) > 1)}: {', '.join(_name(own, device) for device in used)}"
    line += f" on each of {plan.num_nodes} machines." if plan.num_nodes > 1 else "."
    asked = trainer._config.accelerator != "auto"
    idle, problems = [], []
    for other in _describing():
        devices = map(other.device, range(other.device_count()))
        idle += [_name(other, device) for device in devices if device not in used]
        problem = None if asked else other.missing()
        problems += [f" {problem}"] if problem else []
    more = (f" Not used: {', '.join(idle)}." if idle else "") + "".join(problems)
    if more or not asked or isinstance(own, DescribesDevices):
        _once(line + more)
    for sentence in own.advice(run.device, plan) if isinstance(own, DescribesDevices) else ():
        _once(sentence)


def _name(accelerator: Any, device: torch.device) -> str:
    """Return what the accelerator calls a device, if it is one of its own."""
    index = device.index or 0
    own = isinstance(accelerator, DescribesDevices) and accelerator.device(index).type == device.type  # type: ignore[attr-defined]
    return accelerator.describe(index) if own else str(device)


def _describing() -> Iterator[Any]:
    """Yield the installed accelerators that describe their devices; a broken one is no reason to end a run."""
    for name in registry.accelerators.names():
        try:
            accelerator = registry.accelerators.get(name)()
        except Exception:
            continue
        if isinstance(accelerator, DescribesDevices):
            yield accelerator


@cache
def _once(sentence: str) -> None:
    info(sentence)


def explain(run: Run, error: BaseException) -> None:
    """Add to an error's message what the accelerator knows of it."""
    accelerator = run.trainer.accelerator
    text = accelerator.explain(error, run.device, _owners(run)) if isinstance(accelerator, ExplainsErrors) else ""
    if text:  # notes of an exception came with Python 3.11
        error.args = (f"{error}\n{text}", *error.args[1:])


def _owners(run: Run) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors that the run keeps from step to step, by owner and name."""
    parameters = dict(run.module.named_parameters())
    names = {parameter: name for name, parameter in parameters.items()}
    states = {
        f"{key} of {names.get(parameter, 'a parameter')}": value
        for optimizer in run.optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    return {
        "parameters": parameters,
        "buffers": dict(run.module.named_buffers()),
        "gradients": {name: p.grad for name, p in parameters.items() if p.grad is not None},
        "optimizer states": states,
    }
