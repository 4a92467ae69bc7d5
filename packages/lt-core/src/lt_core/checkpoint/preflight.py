"""Try, before the first batch, what saving will need: states that can be kept, folders that can be written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from lt_core.checkpoint.parts import parts
from lt_core.hooks.table import method_of
from lt_interface import RefusesValues, SavesItself
from lt_interface.errors import Problem, raise_problems

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["advised", "check_data", "check_saving"]

# Parts that hold values of the user's objects, beside the states of callbacks and of the data module.
_TRIED = ("state_dict", "optimizer_states", "lr_schedulers", "metric_objects", "precision")


def check_saving(run: Run) -> None:
    """Raise one error that lists each state that cannot be kept and each folder that cannot be written.

    Raises:
        ConfigError: If there is any.
    """
    if _saves(run):
        raise_problems([problem for problem in (*_refused(run), *_folders(run)) if problem is not None])


def check_data(run: Run) -> None:
    """Raise an error if the state of the training data, which is there only now, cannot be kept.

    Raises:
        ConfigError: If it cannot.
    """
    if _saves(run):
        raise_problems(_refused(run, ("data",)))


def advised(problem: Problem) -> Problem:
    """Return a problem of a value that cannot be kept, with the other way out."""
    return replace(problem, fix=f"{problem.fix} Or keep objects: Trainer(plugins=TorchCheckpointIO()).".strip())


def _saves(run: Run) -> bool:
    return bool(run.trainer.checkpoint_callbacks) and not run.trainer.fast_dev_run


def _refused(run: Run, only: tuple[str, ...] = ()) -> list[Problem]:
    """Return what the run's format cannot keep of the parts that hold values of the user's objects."""
    io, problems = run.saves.io, list[Problem]()
    if not isinstance(io, RefusesValues):
        return problems
    for where, state in _states(run, only):
        if isinstance(state, dict):
            problems += map(advised, io.without_refused(state, where)[1])
    return problems


def _states(run: Run, only: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield each state to try, and what it is called; those that lie in parts on the ranks are not gathered for it.

    Lazy parameters get their values by the first batch.
    """
    for owner in () if only else (*run.callbacks, run.datamodule):
        if owner is not None:
            yield f"{type(owner).__name__}.state_dict()", method_of(owner, "state_dict")()
    parted = run.strategy.collective_weights or isinstance(run.engine, SavesItself)
    state: Any
    for part in parts(run):
        if part.key not in (only or _TRIED):
            continue
        if part.key == "state_dict":
            state = {
                k: v for k, v in run.module.state_dict().items() if not (is_lazy(v) or (parted and torch.is_tensor(v)))
            }
        elif part.key == "optimizer_states" and parted:
            groups = ([{**g, "params": []} for g in getattr(o, "param_groups", ())] for o in run.optimizers)
            state = [{"param_groups": each} for each in groups]
        else:
            state = part.stateful.state_dict()
        yield "checkpoint", {part.key: state}


def _folders(run: Run) -> Iterator[Problem | None]:
    """Yield what is wrong with each checkpoint callback's folder, None where nothing is."""
    for callback in run.trainer.checkpoint_callbacks if run.world.is_global_zero else ():
        folder = os.fspath(callback.dirpath or "")
        if folder:
            where = f"{type(callback).__name__}(dirpath={folder!r})"
            yield _writable(where, folder) or _room(run, where, folder)


def _writable(where: str, folder: str) -> Problem | None:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".try-", suffix=".tmp") as file:
            file.write(b"0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        got = f"{type(error).__name__}: {error}"
        return Problem(where, "checkpoints must be writable there", got, "Choose another folder.")
    return None


def _room(run: Run, where: str, folder: str) -> Problem | None:
    """Check that one checkpoint fits: the weights, and twice as much for an optimizer's averages."""
    need = 3 * sum(p.numel() * p.element_size() for p in run.module.parameters() if not is_lazy(p))
    free = shutil.disk_usage(folder).free
    if free >= need:
        return None
    got = f"{free / 1e6:.1f} MB free, about {need / 1e6:.1f} MB needed"
    return Problem(where, "the disk must have room for a checkpoint", got, "Free some space or choose another folder.")
