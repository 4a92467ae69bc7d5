"""Save a checkpoint when a run fails, and remove it when a later run succeeds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lt_core.callbacks.checkpointing.base import Checkpoint
from lt_core.callbacks.checkpointing.files import SAFETENSORS, remove_checkpoint
from lt_core.callbacks.monitored import is_real_fit
from lt_core.notices import warn
from lt_interface.errors import ConfigError, Problem
from lt_interface.paths import local_path, path_problem

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["OnExceptionCheckpoint"]


class OnExceptionCheckpoint(Checkpoint):
    """Callback that saves ``<dirpath>/<filename>.ckpt`` when fit raises, and removes it when a fit succeeds.

    With this callback ``fit(ckpt_path=None)`` resumes from the last checkpoint, if there is one.

    Args:
        dirpath: The folder.
        filename: The file's name without extension, which is ``.ckpt``; or with ``.safetensors``.

    Raises:
        ConfigError: If the name is empty.
    """

    #: What file names end with.
    FILE_EXTENSION = ".ckpt"

    def __init__(self, dirpath: str | os.PathLike[str], filename: str = "on_exception") -> None:
        where = f"OnExceptionCheckpoint(filename={filename!r})"
        if not filename:
            raise ConfigError(Problem(where, "the file needs a name"))
        if filename.endswith(SAFETENSORS):
            filename, self.FILE_EXTENSION = filename.removesuffix(SAFETENSORS), SAFETENSORS
        if (problem := path_problem(where, filename + self.FILE_EXTENSION)) is not None:
            raise ConfigError(problem)
        self.dirpath: str = local_path(f"OnExceptionCheckpoint(dirpath={dirpath!r})", dirpath)
        self.filename = filename
        self._failed = False

    @property
    def ckpt_path(self) -> str:
        """Return the file's path."""
        return os.path.join(self.dirpath, self.filename + self.FILE_EXTENSION)

    def folders(self) -> list[str]:
        """Return the one folder."""
        return [self.dirpath]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier failure."""
        self._failed = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, unless nothing was trained that could be lost."""
        self._failed = True
        if not is_real_fit(trainer):
            return
        try:
            trainer.save_checkpoint(self.ckpt_path)
        except Exception as error:  # what ended the run must be what the user sees
            warn(f"OnExceptionCheckpoint: {self.ckpt_path} was not saved: {error}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the file after a fit that succeeded."""
        if stage == "fit" and not self._failed and not trainer.fast_dev_run and trainer.is_global_zero:
            remove_checkpoint(trainer, self.ckpt_path)
