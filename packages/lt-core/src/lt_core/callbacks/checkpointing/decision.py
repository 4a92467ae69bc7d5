"""Hold what one decision to save changed, and find a path that nobody else writes to."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from lt_core.callbacks.checkpointing.names import first_free

if TYPE_CHECKING:
    from lt_core.trainer import Trainer

__all__ = ["Decision", "free_path", "resumed_from"]


@dataclass
class Decision:
    """Remember what one decision changed, so that a save that fails can take it back.

    Attributes:
        path: The file.
        step: The step it was decided at.
        is_last: Whether it is the ``last`` checkpoint and not one of the best.
        superseded: Files that go once this one is safe on the disk.
        evicted: The scores that this one took the place of.
        previous: What was the newest of its kind before.
        link: What shall become a link to the file.
        previous_link: What was that link before.
    """

    path: str
    step: int
    is_last: bool = False
    superseded: list[str] = field(default_factory=list)
    evicted: dict[str, Tensor] = field(default_factory=dict)
    previous: str = ""
    link: str = ""
    previous_link: str = ""


def free_path(trainer: Trainer, path: str, own: str, join: str, start: int) -> str:
    """Return the path, with a version if another file of that name exists or is about to be written.

    Args:
        trainer: The trainer whose open requests count.
        path: The wanted path.
        own: A path that may be replaced.
        join: What joins the version.
        start: The first version.
    """
    run = trainer._run
    asked_for = set() if run is None else {request.path for request in [*run.saves.queue, *run.saves.in_flight]}

    def taken(candidate: str) -> bool:
        return candidate != own and (candidate in asked_for or os.path.lexists(candidate))

    return first_free(path, taken, join=join, start=start)


def resumed_from(trainer: Trainer) -> str | None:
    """Return the checkpoint that this run was resumed from."""
    return None if trainer._run is None else trainer._run.resumed.path
