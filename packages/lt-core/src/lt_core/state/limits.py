"""Whether training is over: steps, epochs, and a stop that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lt_core.trainer import Trainer

__all__ = ["NO_BATCHES", "fit_is_over", "is_out_of_time", "may_stop", "stop_reason", "stops_epoch"]

NO_BATCHES = "no_batches"


def may_stop(trainer: Trainer) -> bool:
    """Return whether min_epochs and min_steps are reached."""
    progress = trainer._progress
    return progress.epoch >= (trainer.min_epochs or 0) and progress.step >= (trainer.min_steps or 0)


def stops_epoch(trainer: Trainer) -> bool:
    """Return whether the running epoch ends now."""
    reached = trainer.max_steps != -1 and trainer._progress.step >= trainer.max_steps
    return reached or (trainer.should_stop and may_stop(trainer))


def fit_is_over(trainer: Trainer) -> bool:
    """Return whether no further batch follows; a stop that has not left the open epoch yet does so first."""
    progress = trainer._progress
    if not progress.epoch_closed:
        left = trainer._run.loop.fit.left if trainer._run is not None else -1
        return left == progress.batch and stops_epoch(trainer)
    return (trainer.max_epochs != -1 and progress.epoch >= trainer.max_epochs) or stops_epoch(trainer)


def is_out_of_time(trainer: Trainer) -> bool:
    """Return whether nothing but its time ended training, so that it may be resumed with more."""
    reached = stop_reason(trainer) in ("max_steps", "max_epochs")
    return not reached and any(callback.time_is_up for callback in trainer.callbacks)


def stop_reason(trainer: Trainer) -> str | None:
    """Return what ends training now: a limit's name, or who asks for a stop and why; None where nothing does."""
    progress = trainer._progress
    if trainer.max_steps != -1 and progress.step >= trainer.max_steps:
        return "max_steps"
    if trainer.max_epochs != -1 and progress.epoch_closed and progress.epoch >= trainer.max_epochs:
        return "max_epochs"
    if trainer.should_stop and may_stop(trainer):
        return next(iter(trainer._stop_requests.values()), f"should_stop: {trainer._stopper or 'on another rank'}")
    return None
