"""Save checkpoints when they are due, and keep the best of them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from lt_core.callback import Callback
from lt_core.callbacks.checkpointing import files, policy
from lt_core.callbacks.checkpointing.policy import Books, Plan
from lt_core.callbacks.monitored import (
    MonitorError,
    acts_at_epoch_end,
    candidates,
    is_real_fit,
    snapshot,
    waits_for_epoch_end,
)
from lt_core.metrics.absent import missing
from lt_core.notices import info, warn
from lt_core.state.agreement import SharedAlarm, from_rank_zero
from lt_interface.errors import Problem, raise_problems
from lt_interface.paths import local_path

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["Checkpoint", "ModelCheckpoint"]


class Checkpoint(Callback):
    """Callback that saves: it runs after all others, and its folders are searched for ``"last"``.

    Attributes:
        dirpath: The folder that it saves to, once it is known.
        best_model_path: The checkpoint that ``ckpt_path="best"`` means; empty if there is none.
        best_model_score: The value of ``monitor`` there.
        last_model_path: The checkpoint of the last save; empty if there is none.
    """

    monitoring: ClassVar[bool] = True
    role: ClassVar[str] = "checkpoint"
    dirpath: str | None = None
    best_model_path: str = ""
    best_model_score: Tensor | None = None
    last_model_path: str = ""

    @property
    def folder_is_given(self) -> bool:
        """Return whether ``dirpath`` is the user's choice, and not the run's own folder."""
        return bool(self.dirpath)

    def folders(self) -> list[str]:
        """Return the folders in which this callback's checkpoints lie, that of all first."""
        return []

    def problems(self) -> list[Problem]:
        """Return what is wrong with what this callback would write; asked for before a fit starts."""
        return []


def _entry(name: str) -> Any:
    """Return a property that reads and sets an entry of the books."""
    return property(lambda self: getattr(self._books, name), lambda self, value: setattr(self._books, name, value))


class ModelCheckpoint(Checkpoint):
    """Callback that saves at epochs, steps or times, and keeps the best ``save_top_k`` checkpoints by a metric.

    The callback decides in its hooks: name and metrics are fixed there. The file is written at the next boundary. Once
    it is safe on the disk, what the callback says of its files changes, and older ones are removed; of a save that
    fails nothing changes. A file's own state is as it will be when that file is safe: it names itself.

    Args:
        dirpath: The folder; None means the first logger's run folder, or the default root.
        filename: A template such as ``"{epoch}-{val_loss:.2f}"``; None means ``"{epoch}-{step}"``. Files end in
            ``.ckpt``, or in ``.safetensors`` if this does.
        monitor: The metric that says which is best; None keeps the newest.
        verbose: Whether each save is reported.
        save_last: True also writes ``last.ckpt`` wherever saving is due, best or not; ``"link"`` makes it a link to the
            file of that moment, where there is one.
        save_top_k: How many of the best are kept; -1 all, 0 none.
        save_on_exception: Whether to save when the run fails.
        save_weights_only: Whether to leave out optimizers, callbacks and all else.
        mode: ``"min"`` or ``"max"``: which way the metric is better.
        auto_insert_metric_name: Whether names of metrics stand in the file's name.
        every_n_train_steps: Save when so many steps are done; excludes the other triggers.
        train_time_interval: Save when so much time passed; excludes the other triggers.
        every_n_epochs: Save when so many epochs are done; the trigger if none is given, with 1.
        save_on_train_epoch_end: Whether the epoch trigger acts at the epoch's end and not after
            validation; None decides by where validation runs.
        enable_version_counter: Whether a taken name gets ``-v1``; else the file is replaced.

    Raises:
        ConfigError: If an argument is out of range, or two exclude each other.
    """

    _uncalled: ClassVar[dict[str, str]] = {
        "Write what lies beside a file in on_save_checkpoint, or, once it is written, in a logger's "
        "after_save_checkpoint.": (
            "_save_checkpoint _save_last_checkpoint _save_topk_checkpoint _save_monitor_checkpoint "
            "_save_none_monitor_checkpoint _update_best_and_save"
        ),
        "Subclass Checkpoint, and call trainer.request_checkpoint where a file is due.": (
            "check_monitor_top_k _should_skip_saving_checkpoint _should_save_on_train_epoch_end"
        ),
        "Override format_checkpoint_name.": "_format_checkpoint_name _get_metric_interpolated_filepath_name",
    }
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

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
    ) -> None:
        problems = policy.argument_problems(
            monitor, mode, save_last, save_top_k, filename, every_n_train_steps, train_time_interval, every_n_epochs
        )
        raise_problems(problems)
        self.monitor = monitor
        self.verbose = verbose
        self.save_last = save_last
        self.save_top_k = save_top_k
        self.save_on_exception = save_on_exception
        self.save_weights_only = save_weights_only
        self.mode = mode
        self.auto_insert_metric_name = auto_insert_metric_name
        self.filename = filename
        if filename is not None and filename.endswith(files.SAFETENSORS):
            self.filename, self.FILE_EXTENSION = filename.removesuffix(files.SAFETENSORS), files.SAFETENSORS
        self.dirpath = None if dirpath is None else local_path(f"ModelCheckpoint(dirpath={dirpath!r})", dirpath)
        self._default_folder: str | None = None  # what stands in dirpath where no user wrote it
        no_trigger = every_n_train_steps is None and every_n_epochs is None and train_time_interval is None
        self._every_n_epochs = 1 if no_trigger else every_n_epochs or 0
        self._every_n_train_steps = every_n_train_steps or 0
        self._train_time_interval = train_time_interval
        self._save_on_train_epoch_end = save_on_train_epoch_end
        self._enable_version_counter = enable_version_counter
        self._books = Books()
        self._open: list[Plan] = []  # of files that are not safe on the disk yet
        self._deferred = False
        self._validated = False
        self._last_time = time.monotonic()
        self._alarm = None if self._train_time_interval is None else SharedAlarm(self._seconds_left)

    # What users see

    @property
    def state_key(self) -> str:
        """Return a key in which other monitors, modes or triggers differ."""
        return self._generate_state_key(
            monitor=self.monitor,
            mode=self.mode,
            every_n_train_steps=self._every_n_train_steps,
            every_n_epochs=self._every_n_epochs,
            train_time_interval=self._train_time_interval,
        )

    @property
    def every_n_epochs(self) -> int:
        """Return at which epochs is saved; 0 means none."""
        return self._every_n_epochs

    @property
    def kth_value(self) -> Tensor:
        """Return the worst score among the kept ones, which a new one must beat."""
        return self._kth_value(self._books)

    def folders(self) -> list[str]:
        """Return the folder, once it is known, and those below it that the file names lead to."""
        return [] if self.dirpath is None else [self.dirpath, *files.folders_below(self.dirpath, self.filename)]

    def problems(self) -> list[Problem]:
        """Return what a fit with this callback would come to too late: file names that are too long for a disk."""
        insert, equals = self.auto_insert_metric_name, self.CHECKPOINT_EQUALS_CHAR
        where = f"ModelCheckpoint(filename={self.filename!r})"
        return files.length_problems(where, self.filename, insert, equals, self.FILE_EXTENSION)

    @property
    def folder_is_given(self) -> bool:
        """Return whether ``dirpath`` is the user's choice, and not the run's own folder."""
        return self.dirpath is not None and self.dirpath != self._default_folder

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
        name = files.format_name(
            self.filename if filename is None else filename,
            metrics,
            prefix=prefix or "",
            auto_insert=self.auto_insert_metric_name,
            join=self.CHECKPOINT_JOIN_CHAR,
            equals=self.CHECKPOINT_EQUALS_CHAR,
        )
        if ver is not None:
            name += f"{self.CHECKPOINT_JOIN_CHAR}v{ver}"
        name += self.FILE_EXTENSION
        return os.path.join(self.dirpath, name) if self.dirpath else name

    def to_yaml(self, filepath: str | os.PathLike[str] | None = None) -> None:
        """Write the kept paths and their scores.

        Args:
            filepath: Where; None means ``best_k_models.yaml`` in the folder.
        """
        import yaml

        path = os.path.join(self.dirpath or "", "best_k_models.yaml") if filepath is None else os.fspath(filepath)
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump({path: float(score) for path, score in self.best_k_models.items()}, file)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return the kept paths with their scores, as they are once all that was decided is safe on the disk."""
        books = self._ahead()
        return {"monitor": self.monitor, "dirpath": self.dirpath, "kth_value": self._kth_value(books), **asdict(books)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the kept paths; only the best one where the folder is another now."""
        before = state_dict.get("dirpath", self.dirpath)
        if self.dirpath is None:
            self.dirpath = self._default_folder = before
        elif before != self.dirpath:
            warn(
                f"ModelCheckpoint(dirpath={self.dirpath!r}): the checkpoint was written with {before!r}. "
                "Only best_model_path is taken over; scores and older paths begin anew."
            )
            self.best_model_path = state_dict["best_model_path"]
            return
        self._books = replace(Books(), **{name: state_dict[name] for name in vars(Books()) if name in state_dict})

    # Hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree on the folder, and see whose files it holds."""
        if stage != "fit" or trainer.fast_dev_run:
            return
        self._books.saved_step = 0
        raise_problems(self.problems())
        if self.folder_is_given:
            folder = self.dirpath = local_path(f"ModelCheckpoint(dirpath={self.dirpath!r})", self.dirpath)
        else:
            folder = os.path.expanduser(files.default_folder(trainer)) if trainer.is_global_zero else ""
            self.dirpath = self._default_folder = folder = from_rank_zero(trainer, os.path.abspath(folder))
        if trainer.is_global_zero and self.save_top_k != 0 and not trainer.was_to_resume:
            files.warn_of_strangers(folder, [*self.best_k_models, self.best_model_path, self.last_model_path])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the time trigger."""
        self._last_time = time.monotonic()
        self._deferred = self._validated = False
        self._open = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save by steps or time."""
        if self._every_n_train_steps:
            due = trainer.global_step % self._every_n_train_steps == 0
        elif self._alarm is not None:
            due = self._alarm.rings(trainer)
        else:
            return
        if not due or self._is_idle(trainer):
            return
        if self._alarm is not None:
            self._last_time = time.monotonic()
            self._alarm.reset()
        lacks_monitor = self.monitor is not None and self.monitor not in self._monitor_candidates(trainer)
        lacks_monitor = lacks_monitor or waits_for_epoch_end(trainer, self.monitor)
        if lacks_monitor or (self._needs_metrics() and trainer.validates_after(batch_idx)):
            self._deferred = True
        else:
            self._act(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save by epochs, or what waited for a metric."""
        if self._is_idle(trainer):
            return
        metrics = self._monitor_candidates(trainer) if self._deferred else {}
        due = self._deferred and (not trainer.enable_validation or self.monitor is None or self.monitor in metrics)
        if not due and self._epoch_is_due(trainer):
            due = acts_at_epoch_end(trainer, self._save_on_train_epoch_end, self.monitor)
        if due:
            self._act(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save by epochs where validation is the place, or what waited for it."""
        self._validated = self._validated or not trainer.sanity_checking
        if self._is_idle(trainer):
            return
        due = self._deferred and not waits_for_epoch_end(trainer, self.monitor)
        if not due and self._epoch_is_due(trainer):
            due = not acts_at_epoch_end(trainer, self._save_on_train_epoch_end, self.monitor)
        if due:
            self._act(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last checkpoint where none was written yet."""
        if self._is_idle(trainer):
            return
        metrics = self._monitor_candidates(trainer)
        if self._deferred and self.monitor is not None and self.monitor not in metrics:
            warn(str(missing(trainer, f"ModelCheckpoint(monitor={self.monitor!r})", self.monitor, metrics)))
        books = self._ahead()
        if self.save_last and not books.newest and not books.last_model_path:
            self._request(trainer, self._plan_last(trainer, metrics))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave out of a file that is not this callback's what only files that still wait will make true."""
        waiting = trainer.requested_checkpoints
        if self._open and all(plan.path in waiting for plan in self._open):
            plans, self._open = self._open, []
            checkpoint["callbacks"][self.state_key] = self.state_dict()
            self._open = plans

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what would be lost, if ``save_on_exception`` asks for it."""
        step = trainer.global_step
        if not self.save_on_exception or self._is_idle(trainer, self._books):
            return
        # Not the one that was being written when the error came.
        self._open = [plan for plan in self._open if plan.path in trainer.requested_checkpoints]
        if trainer.at_boundary and any(plan.step == step for plan in self._open):
            return  # what was decided at this boundary is still written
        metrics = self._monitor_candidates(trainer)
        self._open = []  # what still waits is not written any more
        plans = [Plan(self._choose_path(trainer, metrics), step)]
        if self.save_last and self.save_last != "link":
            plans.append(self._plan_last(trainer, metrics))
        for plan in plans:
            self._open = [plan] if plan.is_last else []
            try:
                trainer.save_checkpoint(plan.path, weights_only=self.save_weights_only)
            except Exception as error:  # what ended the run must be what the user sees
                self._open = []
                warn(f"ModelCheckpoint(save_on_exception=True): {plan.path} was not saved: {error}")
                return
            if plan.is_last:
                self._enter(trainer, plan)
        self._books.saved_step = step

    # Decisions

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Tensor]:
        """Return what can be monitored or named in a file; a subclass may add to it."""
        return candidates(trainer)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Remove a checkpoint that another one supersedes; a subclass may remove what lies beside it, too."""
        files.remove_checkpoint(trainer, filepath, self.dirpath)

    def _seconds_left(self) -> float:
        interval = self._train_time_interval
        return float("inf") if interval is None else self._last_time + interval.total_seconds() - time.monotonic()

    def _is_idle(self, trainer: Trainer, books: Books | None = None) -> bool:
        """Return whether this is no moment to save: not in fit, only a try, or saved already."""
        return trainer.global_step == (books or self._ahead()).saved_step or not is_real_fit(trainer)

    def _epoch_is_due(self, trainer: Trainer) -> bool:
        return self._every_n_epochs > 0 and (trainer.current_epoch + 1) % self._every_n_epochs == 0

    def _named(self) -> set[str]:
        return set(files.fields(self.filename)) - {"epoch", "step"}

    def _needs_metrics(self) -> bool:
        return self.monitor is not None or bool(self._named())

    def _act(self, trainer: Trainer) -> None:
        """Decide on a checkpoint of this moment: among the best, and as the last."""
        self._deferred = False
        metrics = self._monitor_candidates(trainer)
        saved = False
        if self.monitor is None or self.monitor in metrics:
            saved = self._decide_best(trainer, metrics)
        else:
            problem = missing(trainer, f"ModelCheckpoint(monitor={self.monitor!r})", self.monitor, metrics)
            if self._validated or not trainer.enable_validation:
                raise MonitorError(problem)
            warn(str(problem))
        if self.save_last and not (saved and self.save_last == "link"):
            self._request(trainer, self._plan_last(trainer, metrics))

    def _decide_best(self, trainer: Trainer, metrics: dict[str, Tensor]) -> bool:
        """Ask for a file if this moment is among the best; return whether it is."""
        if self.save_top_k == 0:
            return False
        books, step, score = self._ahead(), trainer.global_step, None
        if self.monitor is None:
            own = books.best_model_path if self.save_top_k == 1 else ""
        else:
            score = snapshot(metrics[self.monitor])
            score = self._worst() if bool(torch.isnan(score)) else score
            if not policy.accepts(books.best_k_models, score, self.save_top_k, self.mode):
                if self.verbose:
                    info(f"Epoch {trainer.current_epoch}, step {step}: {self.monitor} is not among the best.")
                return False
            full = 0 < self.save_top_k <= len(books.best_k_models)
            own = policy.worst_of(books.best_k_models, self.mode) if full else ""
        path, link = self._choose_path(trainer, metrics, own), ""
        if self.verbose:
            info(f"Epoch {trainer.current_epoch}, step {step}: a checkpoint goes to {path}.")
        if self.save_last == "link":
            link = self._choose_path(trainer, metrics, books.last_model_path, last=True)
        self._request(trainer, Plan(path, step, score, link=link))
        return True

    def _plan_last(self, trainer: Trainer, metrics: dict[str, Tensor]) -> Plan:
        path = self._choose_path(trainer, metrics, self._ahead().last_model_path, last=True)
        return Plan(path, trainer.global_step, is_last=True)

    def _worst(self) -> Tensor:
        return torch.tensor(float("inf") if self.mode == "min" else -float("inf"))

    def _kth_value(self, books: Books) -> Tensor:
        kth = books.best_k_models.get(books.kth_best_model_path)
        return self._worst() if kth is None else kth

    def _choose_path(self, trainer: Trainer, metrics: dict[str, Tensor], own: str = "", last: bool = False) -> str:
        """Return rank 0's path; ``own`` may be replaced, anything else that exists gives a version."""
        path = self.format_checkpoint_name(metrics, self.CHECKPOINT_NAME_LAST if last else None)
        if self._enable_version_counter and trainer.is_global_zero:
            path = files.free_path(trainer, path, own, self.CHECKPOINT_JOIN_CHAR, self.STARTING_VERSION)
        return from_rank_zero(trainer, path)

    # Books and files

    def _ahead(self) -> Books:
        """Return the books as they are once all that was decided is safe on the disk."""
        books = self._books
        for plan in self._open:
            books = books.after(plan, self.save_top_k, self.mode)
        return books

    def _request(self, trainer: Trainer, plan: Plan) -> None:
        self._open.append(plan)
        trainer.request_checkpoint(
            plan.path,
            weights_only=self.save_weights_only,
            saved=lambda: self._enter(trainer, plan),
            failed=lambda error: self._close(plan),
            together=True,
        )

    def _close(self, plan: Plan) -> None:
        self._open = [each for each in self._open if each is not plan]

    def _enter(self, trainer: Trainer, plan: Plan) -> None:
        """Change the books, now that a file is safe on the disk: link it, and remove what it supersedes."""
        self._close(plan)
        linked = trainer.is_global_zero and plan.link and files.link(plan.path, plan.link)
        if plan.link and not from_rank_zero(trainer, linked):
            plan = replace(plan, link="")
        self._books = self._books.after(plan, self.save_top_k, self.mode)
        coming = [each.path for each in self._open]  # these take the old files' places
        old, self._books.superseded = self._books.superseded, [p for p in self._books.superseded if p in coming]
        for path in old if trainer.is_global_zero else ():
            if path not in coming and files.may_remove(path, plan.path, self.dirpath, trainer.resumed_from):
                self._remove_checkpoint(trainer, path)
