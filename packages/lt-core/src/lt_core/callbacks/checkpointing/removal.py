"""Remove checkpoints that are no longer wanted, and never one that is still needed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from lt_core.notices import warn

if TYPE_CHECKING:
    from lt_core.trainer import Trainer

__all__ = ["link", "may_remove", "remove_checkpoint"]


def may_remove(path: str, current: str, folder: str | None, resumed: str | None) -> bool:
    """Return whether a checkpoint that was superseded may be deleted.

    It may not where it is the new one itself, where the run was resumed from it, or where it
    lies outside the folder that the callback writes to.
    """
    if not path or os.path.abspath(path) == os.path.abspath(current):
        return False
    if resumed and os.path.realpath(path) == os.path.realpath(resumed):
        return False
    return folder is not None and Path(os.path.abspath(folder)) in Path(os.path.abspath(path)).parents


def remove_checkpoint(trainer: Trainer, path: str) -> None:
    """Delete a checkpoint, or the link to one; a disk that refuses gives a warning, never a stop."""
    try:
        if os.path.islink(path):
            os.unlink(path)
        elif os.path.exists(path):
            run = trainer._run
            if run is not None:
                run.saves.io.remove(path)
            elif os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
    except OSError as error:
        warn(f"The old checkpoint {path} could not be removed: {error}")


def link(target: str, path: str) -> None:
    """Make ``path`` a relative link to ``target`` in one step; where links are refused, a copy."""
    temporary = f"{path}.link-{os.getpid()}"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    try:
        os.symlink(os.path.relpath(target, os.path.dirname(path)), temporary)
    except OSError:
        if os.path.isdir(target):
            shutil.copytree(target, temporary)
        else:
            shutil.copy(target, temporary)
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)  # a folder can not be replaced by renaming
    os.replace(temporary, path)
