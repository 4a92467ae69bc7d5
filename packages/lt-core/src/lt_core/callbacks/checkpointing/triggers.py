"""Say when checkpoints are due: check the triggers, and tell where the epoch's save belongs."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lt_core.callbacks.checkpointing.names import template_problem
from lt_interface.errors import Problem, nearest

if TYPE_CHECKING:
    from lt_core.trainer import Trainer

__all__ = ["argument_problems", "saves_at_epoch_end", "validation_follows"]


def _count_problem(name: str, value: Any, least: int) -> Problem | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        return None
    is_type = isinstance(value, bool) or not isinstance(value, int)
    return Problem(f"ModelCheckpoint({name}={value!r})", f"must be a whole number of at least {least}", is_type=is_type)


def argument_problems(
    *,
    monitor: str | None,
    mode: str,
    save_last: Any,
    save_top_k: int,
    filename: str | None,
    every_n_train_steps: int | None,
    train_time_interval: timedelta | None,
    every_n_epochs: int | None,
) -> list[Problem]:
    """Return everything that is wrong with a ModelCheckpoint's arguments."""
    found = [
        _count_problem("save_top_k", save_top_k, -1),
        _count_problem("every_n_train_steps", every_n_train_steps, 0),
        _count_problem("every_n_epochs", every_n_epochs, 0),
        template_problem(filename, f"ModelCheckpoint(filename={filename!r})"),
    ]
    if mode not in ("min", "max"):
        fix = nearest(str(mode), ("min", "max"))
        found.append(Problem(f"ModelCheckpoint(mode={mode!r})", 'the mode must be "min" or "max"', fix=fix))
    if save_last not in (None, True, False, "link"):
        found.append(Problem(f"ModelCheckpoint(save_last={save_last!r})", 'must be True, False, None or "link"'))
    if train_time_interval is not None and not isinstance(train_time_interval, timedelta):
        where = f"ModelCheckpoint(train_time_interval={train_time_interval!r})"
        found.append(Problem(where, "must be a timedelta", fix="Write timedelta(minutes=30).", is_type=True))
    if found[0] is None and monitor is None and save_top_k not in (-1, 0, 1):
        found.append(
            Problem(
                f"ModelCheckpoint(save_top_k={save_top_k}, monitor=None)",
                "without a monitor there is no best, only all (-1), none (0) or the newest (1)",
                fix='Name the metric: ModelCheckpoint(monitor="val_loss", ...).',
            )
        )
    triggers = {
        "every_n_train_steps": bool(every_n_train_steps),
        "train_time_interval": train_time_interval is not None,
        "every_n_epochs": bool(every_n_epochs),
    }
    given = [name for name, is_given in triggers.items() if is_given]
    if len(given) > 1:
        where = f"ModelCheckpoint({', '.join(f'{name}=...' for name in given)})"
        found.append(Problem(where, "only one of these can be given", fix="Use one ModelCheckpoint for each."))
    return [problem for problem in found if problem is not None]


def saves_at_epoch_end(trainer: Trainer, choice: bool | None) -> bool:
    """Return whether the epoch trigger belongs to the train epoch's end, and not to the end of validation."""
    if choice is not None:
        return choice
    if not trainer.enable_validation:
        return True
    batches = trainer.num_val_batches
    if batches and sum(batches) == 0:
        return True
    return bool(trainer.check_val_every_n_epoch == 1 and trainer.val_check_interval == 1.0)


def validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether validation is due after this batch, as far as counts tell; a clock tells nothing ahead."""
    run = trainer._run
    if run is None or run.cadence.val_seconds is not None:
        return False
    return run.cadence.validation_due(batch_idx, run.is_last_batch(batch_idx))
