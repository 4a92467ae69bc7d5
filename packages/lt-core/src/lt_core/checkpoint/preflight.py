"""Try, before the first batch, what saving will need: states that can be kept, folders that can be written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lt_core.hooks.table import method_of
from lt_interface.errors import Problem, raise_problems

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["check_saving"]


def check_saving(run: Run) -> None:
    """Raise one error that lists each callback state that cannot be kept and each folder that cannot be written.

    Raises:
        ConfigError: If there is any.
    """
    if not run.trainer.checkpoint_callbacks or run.trainer.fast_dev_run:
        return
    raise_problems([problem for problem in _trials(run) if problem is not None])


def _trials(run: Run) -> Iterator[Problem | None]:
    """Yield what is wrong with each state and folder, None where nothing is."""
    from lt_core.checkpoint.format.tree import try_encode

    for callback in run.callbacks:
        yield try_encode(method_of(callback, "state_dict")(), f"{type(callback).__name__}.state_dict()")
    for callback in run.trainer.checkpoint_callbacks if run.world.is_global_zero else ():
        folder = os.fspath(getattr(callback, "dirpath", None) or "")
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
    need = 3 * sum(p.numel() * p.element_size() for p in run.module.parameters())
    free = shutil.disk_usage(folder).free
    if free >= need:
        return None
    got = f"{free / 1e6:.1f} MB free, about {need / 1e6:.1f} MB needed"
    return Problem(where, "the disk must have room for a checkpoint", got, "Free some space or choose another folder.")
