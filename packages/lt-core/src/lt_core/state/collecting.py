"""Collect Python's garbage at chosen steps, on all ranks at once, and not wherever an allocation happens to start it.

The collector stops every thread of a process while it walks all objects, and where ranks wait for one another one
rank's pause is everybody's. So what stands after the first step (modules, optimizers, datasets) is frozen, which spares
walking it again, the collector's own starts are switched off, and it is called at boundaries.
"""

from __future__ import annotations

import gc
import os

__all__ = ["Collecting"]

_active: list[Collecting] = []


class Collecting:
    """Python's garbage collector under a run's control.

    Args:
        every: After how many optimizer steps it is called.
    """

    def __init__(self, every: int) -> None:
        self.every, self._last = every, 0
        self._frozen = self._disabled = self._begun = False

    def steps_left(self, step: int) -> int:
        """Return after how many more optimizer steps `collect` is due: one until it has begun."""
        return self.every - step % self.every if self._begun else 1

    def collect(self, step: int) -> None:
        """Collect if that is due at this step; the first call freezes what stands and switches the automatism off."""
        if self._begun and (step % self.every or step == self._last):
            return
        gc.collect()
        self._last = step
        if not self._begun:
            self._begun, self._disabled, self._frozen = True, gc.isenabled(), not gc.get_freeze_count()
            if self._frozen:
                gc.freeze()
            gc.disable()
            _active.append(self)

    def restore(self) -> None:
        """Leave the collector as it was found."""
        if self._begun:
            self._begun = False
            _active.remove(self)
            if self._frozen:
                gc.unfreeze()
            if self._disabled:
                gc.enable()


def _enable_in_child() -> None:
    if any(one._disabled for one in _active):
        gc.enable()  # a data worker has no boundaries


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_enable_in_child)
