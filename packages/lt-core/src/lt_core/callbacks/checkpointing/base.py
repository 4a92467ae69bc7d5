"""Define the marker of callbacks that save checkpoints."""

from __future__ import annotations

from typing import ClassVar

from lt_core.callback import Callback

__all__ = ["Checkpoint"]


class Checkpoint(Callback):
    """Mark a callback that saves: it runs after all others, and its folders are searched for ``"last"``.

    Attributes:
        best_model_path: The checkpoint that ``ckpt_path="best"`` means; empty if there is none.
    """

    monitoring: ClassVar[bool] = True
    role: ClassVar[str] = "checkpoint"
    best_model_path: str = ""

    def folders(self) -> list[str]:
        """Return the folders in which this callback's checkpoints lie."""
        return []
