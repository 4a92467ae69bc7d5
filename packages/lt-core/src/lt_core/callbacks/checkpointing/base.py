"""Base of callbacks that save."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lt_core.callback import Callback
from lt_interface.errors import Problem

__all__ = ["Checkpoint"]


class Checkpoint(Callback):
    """Callback that saves: it runs after all others, and its folders are searched for ``"last"``.

    Attributes:
        dirpath: The folder that it saves to, once it is known.
        best_model_path: The checkpoint that ``ckpt_path="best"`` means; empty if there is none.
        best_model_score: The value of ``monitor`` there.
        last_model_path: The checkpoint of the last save; empty if there is none.
    """

    monitoring: ClassVar[bool] = True
    role: ClassVar[str] = "checkpoint"
    dirpath: str | None = None
    best_model_path: str = ""
    best_model_score: Tensor | None = None
    last_model_path: str = ""

    @property
    def folder_is_given(self) -> bool:
        """Return whether ``dirpath`` is the user's choice, and not the run's own folder."""
        return bool(self.dirpath)

    def folders(self) -> list[str]:
        """Return the folders in which this callback's checkpoints lie, that of all first."""
        return []

    def problems(self) -> list[Problem]:
        """Return what is wrong with what this callback would write; asked for before a fit starts."""
        return []
