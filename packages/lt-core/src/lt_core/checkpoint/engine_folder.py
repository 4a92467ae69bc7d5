"""Keep what an engine writes by itself: a folder beside the checkpoint, which names it.

The folder of each save has a name of its own and is whole before the file that names it takes the old file's place. So
whatever moment the process dies at, a file and its folder belong together; a folder that no file names is removed with
the next save to that path.
"""

from __future__ import annotations

import glob
import os
import shutil
from typing import TYPE_CHECKING, Any

from lt_core.state.agreement import decided_by_rank_zero, shared_failure
from lt_interface import SavesItself
from lt_interface.errors import CheckpointError

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["KEY", "load_folder", "owner_of", "refuse_alone", "remove_folders", "write_folder"]

KEY = "engine_folder"
_MARK = ".engine-"


def write_folder(run: Run, path: str, tree: dict[str, Any]) -> str:
    """Have the engine write its folder, on every rank, and note the folder's name in the tree.

    Args:
        run: The run; its engine writes by itself.
        path: The checkpoint that the folder belongs to.
        tree: What that will hold.

    Returns:
        The folder.

    Raises:
        CheckpointError: On every rank, if one could not write its part; nothing is left of it.
    """

    def make() -> str:
        number = tree["progress"]["save_counter"]
        while os.path.exists(folder := f"{os.path.abspath(path)}{_MARK}{number}"):
            number += 1
        os.makedirs(folder)
        return folder

    folder, error = decided_by_rank_zero(run, make), None
    try:
        run.engine.save(folder)  # type: ignore[attr-defined]  # it is one that saves itself
    except (OSError, CheckpointError) as caught:
        error = caught
    failure = shared_failure(run, error)
    if failure is not None:
        if run.world.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)
        raise failure
    tree[KEY] = os.path.basename(folder)
    return folder


def owner_of(name: str) -> str:
    """Return the name of the checkpoint that a folder belongs to; another name as it is."""
    return name.partition(_MARK)[0]


def refuse_alone(run: Run, path: str) -> None:
    """Refuse what all ranks write together where this rank is alone after an error.

    Raises:
        CheckpointError: If it is.
    """
    if run.loop.alone:
        raise CheckpointError(f"{path}: every rank writes its part of it, and after an error the others are not here")


def remove_folders(path: str, keep: str = "") -> None:
    """Remove the folders that belong to a checkpoint.

    Args:
        path: The checkpoint.
        keep: The folder that stays.
    """
    for folder in glob.glob(f"{glob.escape(os.path.abspath(path))}{_MARK}*"):
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)


def load_folder(run: Run, checkpoint: dict[str, Any]) -> None:
    """Have the engine take over what an engine of its kind wrote beside the checkpoint.

    Raises:
        CheckpointError: On every rank, if the folder is missing on one, or if this engine does not write by itself.
    """
    name = checkpoint.get(KEY)
    if name is None:
        return
    path = run.resumed.path or ""
    folder = os.path.join(os.path.dirname(os.path.realpath(path)), os.path.basename(str(name)))
    error = None
    if not isinstance(run.engine, SavesItself):
        error = CheckpointError(
            f"{path}: its weights are in {folder}, in the engine's own form, which must be read by the strategy that "
            f'wrote it. Got strategy="{run.strategy.name}". Give that strategy.'
        )
    elif not os.path.isdir(folder):
        error = CheckpointError(
            f"{path}: the folder with its weights must lie beside it. Got none at {folder}. Put it there."
        )
    failure = shared_failure(run, error)
    if failure is not None:
        raise failure
    run.engine.load(folder)  # type: ignore[attr-defined]
