"""Keep the configuration beside the run that it began."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from lt_core.callback import Callback
from lt_interface.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lt_core.cli.parser import LightningArgumentParser
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["SaveConfigCallback"]


class SaveConfigCallback(Callback):
    """Callback that saves the configuration of a command line where the run's logs are.

    Args:
        parser: What the configuration was parsed with.
        config: The configuration.
        config_filename: The file's name.
        overwrite: Whether a file that is there is replaced; else it is an error, unless the run is resumed.
        multifile: Whether parts that came from files of their own are saved as such.
        save_to_log_dir: Whether to save to the log folder; else only `save_config` is called.
    """

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Namespace,
        config_filename: str = "config.yaml",
        overwrite: bool = False,
        multifile: bool = False,
        save_to_log_dir: bool = True,
    ) -> None:
        self.parser = parser
        self.config = config
        self.config_filename = config_filename
        self.overwrite = overwrite
        self.multifile = multifile
        self.save_to_log_dir = save_to_log_dir
        self.already_saved = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save it, once."""
        if self.already_saved:
            return
        self.already_saved = True
        if self.save_to_log_dir:
            self._save_to(trainer)
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save it elsewhere too, in a subclass; called on rank 0 alone.

        Args:
            trainer: The trainer.
            pl_module: The module.
            stage: What is about to run.
        """

    def _save_to(self, trainer: Trainer) -> None:
        path = os.path.join(trainer.log_dir or trainer.default_root_dir, self.config_filename)
        there = trainer.is_global_zero and os.path.isfile(path)
        if trainer.collectives.any(there and not self.overwrite and not trainer.was_to_resume):
            raise ConfigError(
                Problem(
                    "SaveConfigCallback",
                    "it replaces no configuration of another run",
                    path,
                    'Write save_config_kwargs={"overwrite": True}, or take another folder.',
                )
            )
        if trainer.is_global_zero:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            # Nulls, too: one may stand where another value is the default.
            self.parser.save(
                self.config, path, overwrite=True, multifile=self.multifile, skip_unset=False, skip_validation=True
            )
