"""Find the folder that checkpoints go to, and see whose files it holds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lt_core.notices import warn

if TYPE_CHECKING:
    from lt_core.trainer import Trainer

__all__ = ["default_folder", "warn_of_strangers"]


def default_folder(trainer: Trainer) -> str:
    """Return ``<first logger's run folder>/checkpoints``, or ``<default_root_dir>/checkpoints`` without a logger."""
    if not trainer.loggers:
        return os.path.join(trainer.default_root_dir, "checkpoints")
    logger = trainer.loggers[0]
    save_dir = getattr(logger, "save_dir", None)
    root = save_dir if save_dir is not None else trainer.default_root_dir
    version = logger.version
    folder = f"version_{version}" if isinstance(version, int) else version
    own_root = getattr(logger, "root_dir", None)
    if own_root and version is not None and os.path.abspath(own_root) != os.path.abspath(root):
        return os.path.join(os.fspath(own_root), str(folder), "checkpoints")
    parts = [logger.name, folder, "checkpoints"]
    return os.path.join(os.fspath(root), *(str(part) for part in parts if part is not None))


def warn_of_strangers(folder: str, own: Iterable[str]) -> None:
    """Warn where the folder holds anything that is not this callback's own."""
    if not os.path.isdir(folder):
        return
    ours = {os.path.basename(path) for path in own}
    if any(name not in ours and not name.startswith("metrics.journal") for name in os.listdir(folder)):
        warn(f"The checkpoint folder {folder} exists and is not empty.")
