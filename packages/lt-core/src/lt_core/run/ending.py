"""Report how a run ended, in one line: why, where it stands, which checkpoint is the best, and what resumes it.

A run that Ctrl-C ends needs no traceback beside that line: it would show where the loop looked for a signal. So the
interpreter is kept from printing it, unless the environment variable ``LT_DEBUG`` is set.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lt_core.checkpoint.runs import FINISHED, STOPPED
from lt_core.data.stager import Stager
from lt_core.notices import info, say
from lt_core.run.facts import facts_of
from lt_core.state.limits import NO_BATCHES, is_out_of_time, stop_reason
from lt_core.state.stage import TRAIN, VALIDATE
from lt_interface import is_rank_zero

if TYPE_CHECKING:
    from lt_core.run.request import Request
    from lt_core.state.run import Run

__all__ = ["conclude", "ended", "reason_of"]

_LIMITS = {"max_epochs", "max_steps"}
LONG, CLEAR = 60.0, 0.6  # seconds of training that are worth a word on its pace, the share that makes it clear
_ASKED = "should_stop: "


def reason_of(error: BaseException) -> str:
    """Return the stop reason that an error is: ``"signal: SIGINT"``, ``"signal: SIGTERM"`` or ``"error: ..."``."""
    if isinstance(error, KeyboardInterrupt):
        return "signal: SIGINT"
    code = error.code if isinstance(error, SystemExit) else None
    if isinstance(code, int) and code - 128 in set(signal.Signals):
        return f"signal: {signal.Signals(code - 128).name}"
    return f"error: {type(error).__name__}"


def conclude(run: Run, error: BaseException | None = None) -> str:
    """Note why a fit ended, write the line about it on rank 0, and return the status that its record keeps.

    Args:
        run: The run, its last checkpoints written.
        error: What ended it; None if it came to its end.
    """
    trainer = run.trainer
    reason = stop_reason(trainer) or NO_BATCHES if error is None else reason_of(error)
    if run.fits:
        trainer._stop_reason = reason
    by_signal = reason.startswith("signal: ")
    # An error brings its traceback: the line is worth its place where there is something to resume from.
    reports = run.world.is_global_zero and trainer._trial is None
    if reports and (by_signal or (run.fits and (error is None or run.saves.written))):
        info(" ".join(filter(None, [_why(run, reason), *((*_rest(run, error), _pace(run)) if run.fits else ())])))
    return STOPPED if error is not None or is_out_of_time(trainer) else FINISHED


def _why(run: Run, reason: str) -> str:
    """Return the first sentence, in the words that users of Lightning know."""
    trainer = run.trainer
    word = reason.removeprefix("signal: ").removeprefix("error: ")
    if word == "SIGINT":
        word += " (Ctrl-C)"
    elif reason in _LIMITS:
        word = f"`{reason}={getattr(trainer, reason)}` reached"
    elif reason == NO_BATCHES:
        word = "No training batches"
    elif reason.startswith(_ASKED):
        word = f"`trainer.should_stop` was set {reason.removeprefix(_ASKED)}"
    return f"`Trainer.{run.fn}` stopped: {word}."


def _rest(run: Run, error: BaseException | None) -> list[str]:
    """Return what follows of a fit: where it stands, its best checkpoint, and how it is resumed if it may be."""
    newest, best = _newest(run), _best(run)
    if error is None and not is_out_of_time(run.trainer):
        return [_place(run), best or (f"Last checkpoint: {newest[0]}" if newest else "")]
    if newest is not None:
        step = "" if newest[1] is None else f" at step {newest[1]}"
        more = " with more time" if error is None else ""
        return [_place(run), f"To resume{step}{more}: {_call(run, newest[0])}", best]
    if not run.progress.step:
        return [_place(run)]
    saves = "callbacks=[ModelCheckpoint(save_on_exception=True)]"
    return [_place(run), f"There is no checkpoint to resume from; {saves} saves one at such a stop."]


def _place(run: Run) -> str:
    progress = run.progress
    step = f"step {progress.step}."
    if not progress.epoch_closed:
        feed = run.feeds.made.get(TRAIN.word)
        of = f" of {feed.num_batches}" if feed is not None and isinstance(feed.num_batches, int) else ""
        return f"In epoch {progress.epoch} after {progress.batch}{of} batches, {step}"
    return (
        f"At the end of epoch {progress.epoch - 1}, {step}" if progress.epoch else "Before the first batch was trained."
    )


def _best(run: Run) -> str:
    """Return which checkpoint is the best by a monitored value, or an empty string where none is."""
    callback = run.trainer.checkpoint_callback
    if callback is None or not callback.best_model_path or callback.monitor is None or run.trainer.fast_dev_run:
        return ""
    path, score = callback.best_model_path, callback.best_model_score
    return f"Best checkpoint ({callback.monitor}{'' if score is None else f'={float(score):.5g}'}): {path}"


def _pace(run: Run) -> str:
    """Return what bound a long training, if one part of its time clearly did: the input, the transfer or the computing.

    Where a device computes by itself and a batch's copy waits for it, the time of the copy says nothing.
    """
    pace, facts = run.loop.fit.pace, facts_of(run)
    whole = max(pace.whole, pace.fetching + pace.moving)
    shares = {
        "Input": (pace.fetching, "waiting for data"),
        "Transfer": (pace.moving, "moving batches to the device and in transfer hooks"),
        "Compute": (whole - pace.fetching - pace.moving, "in steps"),
    }
    bound, (seconds, what) = max(shares.items(), key=lambda item: item[1][0])
    blurred = bound == "Transfer" and run.device.type != "cpu" and not isinstance(run.engine.place, Stager)
    if whole < LONG or seconds < CLEAR * whole or blurred:
        return ""
    workers = f", num_workers is {facts['num_workers']}" if bound == "Input" and "num_workers" in facts else ""
    more = "" if bound == "Compute" else ' Trainer(profiler="simple") says what to do.'
    return f"{bound}-bound: {100 * seconds / whole:.0f} % of the time with batches went by {what}{workers}.{more}"


def _newest(run: Run) -> tuple[str, int | None] | None:
    """Return the checkpoint to resume from that was written last, with its step if that is known; None without one."""
    callback = run.trainer.checkpoint_callback
    others: list[Any] = [callback and callback.last_model_path, run.resumed.path]
    known = [*reversed(run.saves.written), *((path, None) for path in others if path)]
    return next((one for one in known if os.path.exists(one[0])), None)


def _call(run: Run, path: str) -> str:
    """Return the call that resumes, with the arguments that this one had."""
    names = [f"{s.prefix}_dataloaders" for s in (TRAIN, VALIDATE) if run.feeds.given.get(s.word) is not None]
    names += ["datamodule"] if run.datamodule is not None else []
    given = [f"{name}={name}" for name in names]
    quoted = repr(path) if '"' in path or "\\" in path else f'"{path}"'
    return f"trainer.fit({', '.join(['model', *given])}, ckpt_path={quoted})"


@contextmanager
def ended(request: Request) -> Iterator[None]:
    """Note in the process that launches a call what ends it, and leave Ctrl-C without a traceback."""
    try:
        yield
    except BaseException as error:
        _quieten(error)
        if request.travels and request.fn is TRAIN.fn:
            request.trainer._stop_reason = reason_of(error)
        raise


def _quieten(error: BaseException) -> None:
    """Keep the interpreter from printing the traceback of Ctrl-C; a hook that somebody else has put there stays."""
    if not isinstance(error, KeyboardInterrupt) or os.environ.get("LT_DEBUG", "") not in ("", "0"):
        return
    error.__dict__["_render_traceback_"] = _rendered  # what IPython asks for
    before = sys.excepthook
    if before is sys.__excepthook__ or getattr(before, "__module__", "").startswith("torch."):  # which names the rank
        sys.excepthook = partial(_without_traceback, before)


def _rendered() -> list[str]:
    return ["KeyboardInterrupt (LT_DEBUG=1 shows where)"]


def _without_traceback(
    before: Callable[..., Any], kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Print an error as it was before, but of one that was quietened its name alone."""
    if error.__dict__.get("_render_traceback_") is _rendered:
        if is_rank_zero():
            say(_rendered()[0], sys.stderr)
    else:
        before(kind, error, traceback)
