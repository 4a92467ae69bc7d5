"""Decide when checkpoints are due and which of them to keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, SupportsFloat, TypeVar

from torch import Tensor

from lt_core.callbacks.checkpointing.files import template_problem
from lt_interface.errors import Problem, choice_problems

__all__ = ["Books", "Plan", "accepts", "argument_problems", "best_of", "insert", "worst_of"]

S = TypeVar("S", bound=SupportsFloat)


def _count_problem(name: str, value: Any, least: int) -> Problem | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        return None
    is_type = isinstance(value, bool) or not isinstance(value, int)
    return Problem(f"ModelCheckpoint({name}={value!r})", f"must be a whole number of at least {least}", is_type=is_type)


def argument_problems(
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
        *choice_problems(f"ModelCheckpoint(mode={mode!r})", mode, ("min", "max")),
    ]
    if save_last not in (None, True, False, "link"):
        found.append(Problem(f"ModelCheckpoint(save_last={save_last!r})", 'must be True, False, None or "link"'))
    if train_time_interval is not None and not isinstance(train_time_interval, timedelta):
        where = f"ModelCheckpoint(train_time_interval={train_time_interval!r})"
        found.append(Problem(where, "must be a timedelta", fix="Write timedelta(minutes=30).", is_type=True))
    if found[0] is None and monitor is None and save_top_k not in (-1, 0, 1):
        where = f"ModelCheckpoint(save_top_k={save_top_k}, monitor=None)"
        rule = "without a monitor there is no best, only all (-1), none (0) or the newest (1)"
        found.append(Problem(where, rule, fix='Name the metric: ModelCheckpoint(monitor="val_loss", ...).'))
    names = "every_n_train_steps", "train_time_interval", "every_n_epochs"
    are_given = every_n_train_steps, train_time_interval is not None, every_n_epochs
    given = [name for name, is_given in zip(names, are_given, strict=True) if is_given]
    if len(given) > 1:
        where = f"ModelCheckpoint({', '.join(f'{name}=...' for name in given)})"
        found.append(Problem(where, "only one of these can be given", fix="Use one ModelCheckpoint for each."))
    return [problem for problem in found if problem is not None]


def _key(score: SupportsFloat, mode: str) -> float:
    """Return the score so that less is better; NaN is as bad as can be."""
    value = float(score) if mode == "min" else -float(score)
    return math.inf if math.isnan(value) else value


def best_of(scores: Mapping[str, S], mode: str) -> str:
    """Return the name with the best score, the oldest of equals; an empty string if there is none."""
    return min(scores, key=lambda name: _key(scores[name], mode), default="")


def worst_of(scores: Mapping[str, S], mode: str) -> str:
    """Return the name with the worst score, the oldest of equals; an empty string if there is none."""
    return max(scores, key=lambda name: _key(scores[name], mode), default="")


def accepts(scores: Mapping[str, S], score: SupportsFloat, k: int, mode: str) -> bool:
    """Return whether a new score belongs to the k best; a tie with the worst does not. ``k=-1`` keeps all."""
    if k == -1 or len(scores) < k:
        return True
    return k > 0 and _key(score, mode) < _key(scores[worst_of(scores, mode)], mode)


def insert(scores: MutableMapping[str, S], name: str, score: S, k: int, mode: str) -> dict[str, S]:
    """Add a score in place and return those that had to go, worst first."""
    evicted: dict[str, S] = {}
    scores.pop(name, None)
    while k > 0 and len(scores) >= k:
        worst = worst_of(scores, mode)
        evicted[worst] = scores.pop(worst)
    scores[name] = score
    return evicted


@dataclass(frozen=True)
class Plan:
    """Decision to save: what is to be written, and what the books are to say of it.

    Attributes:
        path: The file.
        step: The step it was decided at.
        score: The monitored value, so that less or more of it is better; None where nothing is monitored.
        is_last: Whether it is the ``last`` checkpoint and not one of the best.
        link: What shall become a link to the file, as the ``last`` checkpoint.
    """

    path: str
    step: int
    score: Tensor | None = None
    is_last: bool = False
    link: str = ""


@dataclass
class Books:
    """Files that a callback keeps, as they are on the disk.

    Attributes:
        best_k_models: The scores of the kept files by path, where something is monitored.
        best_model_path: The best of them; where nothing is monitored, the newest.
        best_model_score: Its score.
        kth_best_model_path: The worst of them.
        current_score: The score of the file that was kept last.
        last_model_path: The ``last`` checkpoint.
        newest: The newest of the files that ``save_top_k`` keeps.
        saved_step: The step of the newest file.
        superseded: Files that are to be removed.
    """

    best_k_models: dict[str, Tensor] = field(default_factory=dict)
    best_model_path: str = ""
    best_model_score: Tensor | None = None
    kth_best_model_path: str = ""
    current_score: Tensor | None = None
    last_model_path: str = ""
    newest: str = ""
    saved_step: int = 0
    superseded: list[str] = field(default_factory=list)

    def after(self, plan: Plan, k: int, mode: str) -> Books:
        """Return the books as they are once a planned file is durable.

        Args:
            plan: The plan.
            k: How many of the best are kept; -1 all.
            mode: ``"min"`` or ``"max"``.
        """
        new = replace(self, best_k_models=dict(self.best_k_models), saved_step=plan.step)
        gone = list(self.superseded)
        if plan.is_last or plan.link:
            gone.append(self.last_model_path)
            new.last_model_path = plan.link or plan.path
        if not plan.is_last:
            new.newest = plan.path
            if plan.score is None:
                gone += [self.best_model_path] if k == 1 else []
                new.best_model_path = plan.path
            else:
                new.current_score = plan.score
                gone += insert(new.best_k_models, plan.path, plan.score, k, mode)
                new.best_model_path = best_of(new.best_k_models, mode)
                new.best_model_score = new.best_k_models[new.best_model_path]
                new.kth_best_model_path = worst_of(new.best_k_models, mode)
        kept = {"", new.best_model_path, new.last_model_path, *new.best_k_models}
        new.superseded = [path for path in dict.fromkeys(gone) if path not in kept]
        return new
