"""Find where the loop stands when a checkpoint is made: what is done, and with what a run that resumes begins.

At a boundary that is what the loop itself notes. ``trainer.save_checkpoint`` may be called in any hook, though, and
after an error. From ``on_train_batch_end`` on the batch is done; what is due after it (logging, validation, plateau
schedulers) comes first when the file is resumed, and after the last validation hook or the epoch's end hook the rest of
these. Before, the batch is trained again; and since no gradients are kept, so is the whole of an open accumulation
window, whenever that is. The file is exact if the batch is done, its window is closed, and no later callback's hook was
left.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lt_core.metrics.store import TRAIN_BATCH_END, TRAIN_EPOCH_END
from lt_core.notices import warn

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["Standing", "standing"]

_CALLERS = ("lt_core.loops.", "lt_core.hooks.")


@dataclass(frozen=True)
class Standing:
    """Place of the loop, as a checkpoint notes it.

    Attributes:
        batch: Completed batches of the running epoch.
        closed: Whether no epoch is open.
        exact: Whether a resumed run does what this one would have done, to the bit.
        pending: What it begins with: ``"due"``, all that is due after a batch; ``"validation"``, that but for logging;
            ``"validating"``, with the validation that was running; ``"validated"``, with what is due after one;
            ``"closing"``, with what follows the epoch's end hooks; or None.
        before: What the running validation began with, where that is to come again; its random state in any case.
        data: The place in the training data; None for where the feed stands.
        unseen: Samples that the feed handed out, and that are not counted.
    """

    batch: int
    closed: bool
    exact: bool
    pending: str | None = None
    before: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    unseen: int = 0

    def counters(self, run: Run) -> dict[str, Any]:
        """Return the run's counters, as of this place."""
        own = {"batch": self.batch, "epoch_closed": self.closed, "samples": run.progress.samples - self.unseen}
        return {**run.progress.state_dict(), **own, "exact": self.exact, "pending": self.pending}


def standing(run: Run) -> Standing:
    """Return where the run's loop stands now; nothing is exchanged with other ranks."""
    progress, loop, feed = run.progress, run.loop, run.feeds.made.get("train")
    before, pending = loop.fit.before_validation, loop.fit.pending
    hook, scope = run.metrics.current.hook, run.metrics.train.scope if loop.broke_in is None else loop.broke_in
    here = Standing(progress.batch, progress.epoch_closed, loop.at_boundary, pending, before)
    if before is not None and not progress.epoch_closed:
        here = _in_validation(run, here, hook)
    if not run.fits or progress.epoch_closed or run.resumed.tree is not None or feed is None or feed.waits:
        return here
    if run.saves.kept:  # between fits that go on in one epoch: the feed is closed, or not set to its place yet
        return here
    if not feed.began(progress.epoch):  # the epoch's first hooks, which come again
        return Standing(0, True, False)
    done, handed = progress.batch, feed.handed
    if scope == TRAIN_EPOCH_END:
        over = loop.fit.left != done
        here = Standing(done, False, _is_last(run, "on_train_epoch_end"), "closing" if over else None)
    elif handed > done and scope == TRAIN_BATCH_END:
        done += 1
        here = Standing(done, False, _is_last(run, "on_train_batch_end"), "due")
    elif handed > done:
        return _again(run, _window_start(run, done), handed)
    if scope != TRAIN_EPOCH_END and done and run.window_open(done - 1):
        return _again(run, _window_start(run, done - 1), handed)
    return here


def _in_validation(run: Run, here: Standing, hook: str) -> Standing:
    """Return the place inside a validation: it comes again as a whole, unless its last hooks are being called."""
    if hook == "on_validation_end" and here.before is not None:
        exact = here.exact and _is_last(run, hook)
        return replace(here, exact=exact, pending="validated", before={"rng": here.before["rng"]})
    return replace(here, pending="validating")


def _window_start(run: Run, index: int) -> int:
    """Return the first batch of the window that a batch is in."""
    return index - index % run.accumulate


def _again(run: Run, first: int, handed: int) -> Standing:
    """Return the place from which the batches from ``first`` on are trained again, if the data can go back there."""
    feed, before = run.feed, run.loop.fit.before_validation
    place = feed.place_before(handed - first)
    if place is None:
        if run.loop.first_time("going back"):
            warn(
                f"{feed.where}: it keeps its own place, which cannot go back. A run that resumes goes on behind batch "
                f"{handed - 1}, which was not trained to its end when the checkpoint was made."
            )
        return Standing(handed, False, False, before=before)
    unseen = feed.samples - sum(leaf["samples"] for leaf in place["leaves"])
    return Standing(first, False, False, before=before, data=place, unseen=unseen)


def _is_last(run: Run, hook: str) -> bool:
    """Return whether the hook function that is being called is the last that has anything to keep."""
    functions: tuple[Callable[..., Any], ...] = getattr(run.hooks, hook, ())
    frame: Any = sys._getframe(1)
    while frame is not None:
        running = frame.f_locals.get("f") if frame.f_globals.get("__name__", "").startswith(_CALLERS) else None
        if running is not None and running in functions:
            return functions.index(running) + 1 == len(functions)
        frame = frame.f_back
    return False
