"""Report what a run begins with, and what is known of an error that ends it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from lt_core.notices import info
from lt_interface import registry
from lt_interface.accelerator import DescribesDevices, ExplainsErrors

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["advise", "announce", "explain"]


def announce(run: Run, header: Mapping[str, Any] | None) -> None:
    """Write on rank 0 one line on devices, precision, strategy, folder and what is resumed, and the devices' advice.

    Each fit gets its line, another call only where the trainer had none before. Without a progress bar there is none,
    unless a device cannot be used. Advice is given once a process.

    Args:
        run: The run, its loggers open.
        header: That of the checkpoint that it begins with, if there is one.
    """
    trainer = run.trainer
    if not run.world.is_global_zero or (trainer._announced and not run.fits):
        return
    trainer._announced = True
    devices, problems = _devices(run)
    bar = trainer.progress_bar_callback
    if bar is not None and bar.is_enabled:
        info(" ".join([devices, *_rest(run, header), *problems]))
    elif problems:
        _once(" ".join([devices, *problems]))
    own = trainer.accelerator
    for sentence in own.advice(run.device, run.plan) if isinstance(own, DescribesDevices) else ():
        _once(sentence)


def advise(run: Run) -> None:
    """Write on rank 0, under the bar as `announce`, what the way in which the optimizers are built costs each step."""
    bar = run.trainer.progress_bar_callback
    if not run.world.is_global_zero or bar is None or not bar.is_enabled:
        return
    from lt_core.optim.by_rule import ByRule
    from lt_core.optim.price import price

    engine = run.engine.optimizers
    own = [optimizer for number, optimizer in enumerate(run.optimizers) if optimizer in engine[number : number + 1]]
    parts = [part for one in own for part in (one.optimizers.values() if isinstance(one, ByRule) else [one])]
    with suppress(Exception):  # advice is not worth a run
        lines = [price(part, run.module) for part in parts]
        if any(lines):
            info(" ".join(filter(None, lines)))


def _rest(run: Run, header: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield how the run computes, where it writes, and from where it begins."""
    trainer, size = run.trainer, run.world.size
    yield f"Precision: {trainer.precision}. Strategy: {run.plan.strategy}{f' ({size} processes)' if size > 1 else ''}."
    if (trainer.loggers or trainer.checkpoint_callbacks) and not trainer.fast_dev_run:
        yield f"Folder: {_short(trainer.log_dir)}."
    if run.resumed.path is not None:
        step = f" at step {(header or {}).get('progress', {}).get('step', 0)}" if run.fits else ""
        yield f"{'Resuming' if run.fits else 'Weights'} from {os.path.basename(run.resumed.path)}{step}."
    elif run.fits:
        yield f"Going on at step {run.progress.step}." if run.progress.step else "A new run."


def _short(path: str | os.PathLike[str] | None) -> str:
    """Return a path as short as it is exact: from the working folder, if it lies in there."""
    whole, here = os.path.abspath(path or "."), os.getcwd()
    return os.path.relpath(whole) if whole.startswith(os.path.join(here, "")) else whole


def _devices(run: Run) -> tuple[str, list[str]]:
    """Return a sentence on the devices that are used and those that are not, and the problems of those that cannot."""
    trainer, plan, own = run.trainer, run.plan, run.trainer.accelerator
    used = [run.device] if len(plan.devices) == 1 else list(dict.fromkeys(map(own.device, plan.devices)))
    line = f"Device{'s' * (len(used) > 1)}: {', '.join(_name(own, device) for device in used)}"
    line += f" on each of {plan.num_nodes} machines." if plan.num_nodes > 1 else "."
    asked = trainer._config.accelerator != "auto"
    idle: list[str] = []
    problems: list[str] = []
    for other in _describing():
        devices = map(other.device, range(other.device_count()))
        idle += [_name(other, device) for device in devices if device not in used]
        problem = None if asked else other.missing()
        problems += [str(problem)] if problem else []
    return line + (f" Not used: {', '.join(idle)}." if idle else ""), problems


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
