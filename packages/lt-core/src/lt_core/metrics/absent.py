"""Report why a monitored metric is not there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lt_core.hooks.table import overrides
from lt_core.state.stage import VALIDATE
from lt_interface.errors import Problem, nearest

if TYPE_CHECKING:
    from lt_core.trainer import Trainer

__all__ = ["missing", "names_validation"]

_VALIDATION = re.compile(r"(?i)(.*[^a-z])?val(id(ation)?)?([^a-z].*)?")


def names_validation(monitor: object) -> bool:
    """Return whether a metric's name says that a validation logs it, as ``val_loss`` and ``loss/valid`` do."""
    return isinstance(monitor, str) and _VALIDATION.fullmatch(monitor) is not None


def missing(trainer: Trainer, where: str, monitor: str, keys: Iterable[str]) -> Problem:
    """Return the problem of a metric that is not there, with the names that are, and why it may be missing.

    Args:
        trainer: The trainer.
        where: Who monitors it.
        monitor: Its name.
        keys: What is there.
    """
    if trainer.barebones:
        return Problem(where, "barebones=True turns self.log off, so there is no metric", fix="Leave one of them out.")
    known = sorted(set(keys) - {"epoch", "step"})
    there = f"Logged are: {', '.join(known)}." if known else "Nothing is logged so far."
    if monitor in trainer.logged_metrics and not trainer.global_rank:
        rule = "a validation logs this metric by step only, and what is monitored is its value over all batches"
        fix = f'{there} Write self.log("{monitor}", value, on_epoch=True) in validation_step.'
        return Problem(where, rule, fix=fix)
    where_all = " on rank 0, by whose values all ranks decide" if trainer.world_size > 1 else ""
    rule = f"no metric of that name was logged{where_all}"
    near = nearest(monitor, known)
    idle, instead = _idle(trainer)
    if idle and (names_validation(monitor) or not near):  # else a name of training's was misspelt
        return Problem(where, f"{rule}, and {idle}", fix=f"{there} {instead}")
    return Problem(where, rule, fix=f"{there} {near}".rstrip() + f' Write self.log("{monitor}", value) in the module.')


def _idle(trainer: Trainer) -> tuple[str, str]:
    """Return why nothing is validated and what to do about it, or empty strings where something is."""
    run = trainer._run
    if run is None or trainer.enable_validation:
        return "", ""
    train = "or monitor what training logs."
    if not trainer.limit_val_batches:
        return f"limit_val_batches={trainer.limit_val_batches} turns validation off", f"Leave that out, {train}"
    lacks = VALIDATE.loader if overrides(run.module, VALIDATE.step) else VALIDATE.step
    return f"nothing is validated, since there is no {lacks}", f"Write one, {train}"
