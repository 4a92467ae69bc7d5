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
_found = [False, False]  # by the first of those: whether the collector was on, and nothing frozen


class Collecting:
    """Python's garbage collector under a run's control.

    Args:
        every: After how many optimizer steps it is called.
    """

    def __init__(self, every: int) -> None:
        self.every, self._last = every, 0
        self._begun = False

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
            self._begun = True
            if not _active:
                _found[:] = gc.isenabled(), not gc.get_freeze_count()
                if _found[1]:
                    gc.freeze()
                gc.disable()
            _active.append(self)

    def restore(self) -> None:
        """Leave the collector as it was found, once no other run controls it: one inside this, or in another thread."""
        if self._begun:
            self._begun = False
            _active.remove(self)
            if not _active and _found[1]:
                gc.unfreeze()
            if not _active and _found[0]:
                gc.enable()


def _enable_in_child() -> None:
    if _active and _found[0]:
        gc.enable()  # a data worker has no boundaries


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_enable_in_child)
