"""Decide on checkpoints in the methods that subclasses override, and keep books of the files.

A decision is made in a hook: name and metrics are fixed there. By rule the file is written at the next boundary, and
the books change once it is safe on the disk. Where a subclass takes part, by a hook or a method of its own, it expects
of ``super()`` what Lightning's class does: that the file is there when the call returns, and that the attributes speak
of it while ``_save_checkpoint`` runs. So it is written in the hook then. That is as exact a point to resume from, since
these callbacks run after all others, and costs the same but where checkpoints are written beside the training.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from lt_core.callbacks.checkpointing import files, policy
from lt_core.callbacks.checkpointing.base import Checkpoint
from lt_core.callbacks.checkpointing.policy import Books, Plan
from lt_core.callbacks.monitored import MonitorError, candidates, is_real_fit, snapshot
from lt_core.checkpoint.save import announce
from lt_core.metrics.absent import missing
from lt_core.notices import info, warn
from lt_core.state.agreement import from_rank_zero

if TYPE_CHECKING:
    from lt_core.trainer import Trainer

__all__ = ["TAKING_PART", "Decisions"]

#: Hooks and steps of saving: a subclass that has one of its own takes part.
TAKING_PART = (
    "_save_checkpoint",
    "_save_last_checkpoint",
    "_save_monitor_checkpoint",
    "_save_none_monitor_checkpoint",
    "_save_topk_checkpoint",
    "_update_best_and_save",
    "on_train_batch_end",
    "on_train_end",
    "on_train_epoch_end",
    "on_validation_end",
)


def _entry(name: str) -> Any:
    """Return a property that reads and sets an entry of the books."""
    return property(lambda self: getattr(self._books, name), lambda self, value: setattr(self._books, name, value))


class Decisions(Checkpoint):
    """Decisions, file names and books of `ModelCheckpoint`."""

    #: What joins the parts of a file name.
    CHECKPOINT_JOIN_CHAR: ClassVar[str] = "-"
    #: What stands between a metric's name and its value in a file name.
    CHECKPOINT_EQUALS_CHAR: ClassVar[str] = "="
    #: Name of the file that ``save_last`` keeps.
    CHECKPOINT_NAME_LAST: ClassVar[str] = "last"
    #: What file names end with.
    FILE_EXTENSION: str = ".ckpt"
    #: Number of the first file that would otherwise replace another one.
    STARTING_VERSION: ClassVar[int] = 1

    #: Path of the best checkpoint; empty before there is one.
    best_model_path: str = _entry("best_model_path")
    #: Value of the monitored metric in the best checkpoint.
    best_model_score: Tensor | None = _entry("best_model_score")
    #: Value of the monitored metric when it was last looked at.
    current_score: Tensor | None = _entry("current_score")
    #: Score of each kept checkpoint by its path.
    best_k_models: dict[str, Tensor] = _entry("best_k_models")
    #: Path of the worst kept checkpoint, which a better one replaces.
    kth_best_model_path: str = _entry("kth_best_model_path")
    #: Path of what ``save_last`` has written last.
    last_model_path: str = _entry("last_model_path")
    _last_global_step_saved: int = _entry("saved_step")
    _last_checkpoint_saved: str = ""

    #: Hooks and steps of saving as they are where nobody takes part, by name.
    _ours: ClassVar[dict[str, Any]] = {}
    filename: str | None
    verbose: bool
    save_last: bool | Literal["link"] | None
    save_top_k: int
    save_weights_only: bool
    mode: str
    auto_insert_metric_name: bool
    _enable_version_counter: bool

    def __init__(self) -> None:
        self._books = Books()
        self._open: list[Plan] = []  # of files that are not safe on the disk yet
        self._refusal: OSError | None = None  # what the disk said last
        self._linked_at = -1  # the step whose file ``last`` is a link to
        self._deferred = False
        self._validated = False

    @property
    def kth_value(self) -> Tensor:
        """Return the worst score among the kept ones, which a new one must beat."""
        return self._kth_value(self._books)

    @kth_value.setter
    def kth_value(self, value: Tensor) -> None:
        self.best_k_models[self.kth_best_model_path] = value

    def _kth_value(self, books: Books) -> Tensor:
        kth = books.best_k_models.get(books.kth_best_model_path)
        return self._worst() if kth is None else kth

    def _worst(self) -> Tensor:
        return torch.tensor(float("inf") if self.mode == "min" else -float("inf"))

    # Names

    def format_checkpoint_name(
        self, metrics: Mapping[str, Any], filename: str | None = None, ver: int | None = None, prefix: str | None = None
    ) -> str:
        """Return the path of a checkpoint with these metrics.

        Args:
            metrics: Numbers or 0-dim tensors by name; one that is not there counts as 0.
            filename: A template; None means the callback's own.
            ver: A number for the suffix ``-v<ver>``.
            prefix: Put before the name.
        """
        template = self.filename if filename is None else filename
        name = self._format_checkpoint_name(template, metrics, prefix, self.auto_insert_metric_name)
        if ver is not None:
            name += f"{self.CHECKPOINT_JOIN_CHAR}v{ver}"
        name += self.FILE_EXTENSION
        return os.path.join(self.dirpath, name) if self.dirpath else name

    def _format_checkpoint_name(
        self,
        filename: str | None,
        metrics: Mapping[str, Any],
        prefix: str | None = None,
        auto_insert_metric_name: bool = True,
    ) -> str:
        """Return a template's name with these metrics, without folder and extension."""
        join, equals = self.CHECKPOINT_JOIN_CHAR, self.CHECKPOINT_EQUALS_CHAR
        insert = auto_insert_metric_name
        return files.format_name(filename, metrics, prefix=prefix or "", auto_insert=insert, join=join, equals=equals)

    def _get_metric_interpolated_filepath_name(
        self, monitor_candidates: Mapping[str, Any], trainer: Trainer, del_filepath: str | None = None
    ) -> str:
        """Return rank 0's path for a checkpoint of this moment; ``del_filepath`` may be replaced."""
        return self._choose_path(trainer, monitor_candidates, del_filepath or "")

    def _choose_path(self, trainer: Trainer, metrics: Mapping[str, Any], own: str = "", last: bool = False) -> str:
        """Return rank 0's path; ``own`` may be replaced, anything else that exists gives a version."""
        path = self.format_checkpoint_name(metrics, self.CHECKPOINT_NAME_LAST if last else None)
        if self._enable_version_counter and trainer.is_global_zero:
            path = files.free_path(trainer, path, own, self.CHECKPOINT_JOIN_CHAR, self.STARTING_VERSION)
        return from_rank_zero(trainer, path)

    def file_exists(self, filepath: str | os.PathLike[str], trainer: Trainer) -> bool:
        """Return whether rank 0 sees a checkpoint; every rank calls it.

        Args:
            filepath: Its path.
            trainer: The trainer.
        """
        return from_rank_zero(trainer, os.path.exists(filepath))

    # Decisions

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Tensor]:
        """Return what can be monitored or named in a file; a subclass may add to it."""
        return candidates(trainer)

    def _should_skip_saving_checkpoint(self, trainer: Trainer) -> bool:
        """Return whether this is no moment to save: not in fit, only a try, or saved already."""
        return trainer.global_step == self._ahead().saved_step or not is_real_fit(trainer)

    def _act(self, trainer: Trainer) -> None:
        """Decide on a checkpoint of this moment: among the best, and as the last."""
        self._deferred = False
        metrics = self._monitor_candidates(trainer)
        self._save_topk_checkpoint(trainer, metrics)
        self._save_last_checkpoint(trainer, metrics)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Save if this moment is among the best, or where nothing is monitored.

        Raises:
            MonitorError: If the metric is not there, and no validation could come that logs it.
        """
        if self.save_top_k == 0:
            return
        if self.monitor is None:
            self._save_none_monitor_checkpoint(trainer, monitor_candidates)
        elif self.monitor in monitor_candidates:
            self._save_monitor_checkpoint(trainer, monitor_candidates)
        else:
            where = f"ModelCheckpoint(monitor={self.monitor!r})"
            problem = missing(trainer, where, self.monitor, monitor_candidates)
            if self._validated or not trainer.enable_validation:
                raise MonitorError(problem)
            warn(str(problem))

    def _save_monitor_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Save if the monitored value is among the best."""
        current = monitor_candidates[str(self.monitor)]
        if self.check_monitor_top_k(trainer, current):
            self._update_best_and_save(current, trainer, monitor_candidates)
        elif self.verbose:
            step = trainer.global_step
            info(f"Epoch {trainer.current_epoch}, step {step}: {self.monitor} is not among the best.")

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether a value is among the best ``save_top_k``.

        Args:
            trainer: The trainer.
            current: The monitored value; with None it is not.
        """
        return current is not None and policy.accepts(self._ahead().best_k_models, current, self.save_top_k, self.mode)

    def _update_best_and_save(self, current: Tensor, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Save as one of the best, in place of the worst of them."""
        score, books = snapshot(current), self._ahead()
        score = self._worst() if bool(torch.isnan(score)) else score
        full = 0 < self.save_top_k <= len(books.best_k_models)
        own = policy.worst_of(books.best_k_models, self.mode) if full else ""
        self._save_best(trainer, monitor_candidates, own, score)

    def _save_none_monitor_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Save as the newest one."""
        own = self._ahead().best_model_path if self.save_top_k == 1 else ""
        self._save_best(trainer, monitor_candidates, own, None)

    def _save_best(self, trainer: Trainer, metrics: dict[str, Tensor], own: str, score: Tensor | None) -> None:
        path, link = self._get_metric_interpolated_filepath_name(metrics, trainer, own), ""
        if self.verbose:
            info(f"Epoch {trainer.current_epoch}, step {trainer.global_step}: a checkpoint goes to {path}.")
        if self.save_last == "link":
            link = self._choose_path(trainer, metrics, self._ahead().last_model_path, last=True)
            self._linked_at = trainer.global_step
        self._write(trainer, Plan(path, trainer.global_step, score, link=link))

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Save as the last one if ``save_last`` asks for it, and no link to this moment's file does for it."""
        if self.save_last and not (self.save_last == "link" and self._linked_at == trainer.global_step):
            self._write(trainer, self._plan_last(trainer, monitor_candidates))

    def _plan_last(self, trainer: Trainer, metrics: dict[str, Tensor]) -> Plan:
        path = self._choose_path(trainer, metrics, self._ahead().last_model_path, last=True)
        return Plan(path, trainer.global_step, is_last=True)

    # Files and books

    def _takes_part(self) -> bool:
        """Return whether a subclass, or this object, has a hook or a step of saving of its own."""
        return any(getattr(getattr(self, name), "__func__", None) is not own for name, own in self._ours.items())

    def _ahead(self) -> Books:
        """Return the books as they are once all that was decided is safe on the disk."""
        books = self._books
        for plan in self._open:
            books = books.after(plan, self.save_top_k, self.mode)
        return books

    def _write(self, trainer: Trainer, plan: Plan) -> None:
        """Write a file: now where a subclass takes part, else at the next boundary."""
        if self._takes_part():
            self._write_now(trainer, plan)
            return
        self._open.append(plan)
        trainer.request_checkpoint(
            plan.path,
            weights_only=self.save_weights_only,
            saved=lambda: self._enter(trainer, plan),
            failed=lambda error: self._close(plan),
            together=True,
        )

    def _write_now(self, trainer: Trainer, plan: Plan) -> None:
        before, self._books = self._books, self._books.after(plan, self.save_top_k, self.mode)
        try:
            self._save_checkpoint(trainer, plan.path)
        except OSError as error:
            self._books = before
            if error is not self._refusal:  # an error of the subclass's own
                raise
            warn(f"checkpoint {plan.path}: not written, training goes on. {type(error).__name__}: {error}.")
            return
        if not self._link(trainer, plan):
            self._books.last_model_path = before.last_model_path
        self._tidy(trainer, plan)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Write a file now and let the loggers know; a subclass may write more, or something else.

        Raises:
            OSError: If the disk refuses, on every rank.
        """
        try:
            trainer.save_checkpoint(filepath, self.save_weights_only)
        except OSError as error:
            self._refusal = error
            raise
        self._last_global_step_saved, self._last_checkpoint_saved = trainer.global_step, filepath
        announce(trainer.loggers, self)

    def _close(self, plan: Plan) -> None:
        self._open = [each for each in self._open if each is not plan]

    def _enter(self, trainer: Trainer, plan: Plan) -> None:
        """Change the books, now that a file is safe on the disk: link it, and remove what it supersedes."""
        self._close(plan)
        if not self._link(trainer, plan):
            plan = replace(plan, link="")
        self._books = self._books.after(plan, self.save_top_k, self.mode)
        self._tidy(trainer, plan)

    def _link(self, trainer: Trainer, plan: Plan) -> bool:
        """Make the link that a plan has; return whether it has none, or it is there."""
        if not plan.link:
            return True
        return from_rank_zero(
            trainer, trainer.is_global_zero and os.path.exists(plan.path) and files.link(plan.path, plan.link)
        )

    @staticmethod
    def _link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
        """Make one path a link to a checkpoint."""
        if trainer.is_global_zero:
            files.link(filepath, linkpath)

    def _tidy(self, trainer: Trainer, plan: Plan) -> None:
        """Remove what a file supersedes."""
        coming = [each.path for each in self._open]  # these take the old files' places
        old, self._books.superseded = self._books.superseded, [p for p in self._books.superseded if p in coming]
        old = [path for path in old if path not in coming and self._should_remove_checkpoint(trainer, path, plan.path)]
        for path in from_rank_zero(trainer, [*filter(os.path.lexists, old)]) if old else ():
            self._remove_checkpoint(trainer, path)

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        """Return whether a superseded checkpoint may go: not a run's own beginning, nor one of another folder."""
        return files.may_remove(previous, current, self.dirpath, trainer.resumed_from)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Remove a superseded checkpoint; a subclass may remove what lies beside it, too. Every rank calls it."""
        if trainer.is_global_zero:
            files.remove_checkpoint(trainer, filepath, self.dirpath)
