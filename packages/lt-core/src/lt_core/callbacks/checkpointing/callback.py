"""Save checkpoints when they are due, and keep the best of them."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from lt_core.callbacks.checkpointing import files, policy
from lt_core.callbacks.checkpointing.decisions import TAKING_PART, Decisions
from lt_core.callbacks.checkpointing.policy import Books, Plan
from lt_core.callbacks.monitored import acts_at_epoch_end, is_real_fit, waits_for_epoch_end
from lt_core.metrics.absent import missing
from lt_core.notices import warn
from lt_core.state.agreement import SharedAlarm, from_rank_zero
from lt_interface.errors import Problem, raise_problems
from lt_interface.paths import local_path

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["ModelCheckpoint"]


class ModelCheckpoint(Decisions):
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
        super().__init__()
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
        if not due or self._should_skip_saving_checkpoint(trainer):
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
        if self._should_skip_saving_checkpoint(trainer):
            return
        metrics = self._monitor_candidates(trainer) if self._deferred else {}
        due = self._deferred and (not trainer.enable_validation or self.monitor is None or self.monitor in metrics)
        if not due and self._epoch_is_due(trainer):
            due = self._should_save_on_train_epoch_end(trainer)
        if due:
            self._act(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save by epochs where validation is the place, or what waited for it."""
        self._validated = self._validated or not trainer.sanity_checking
        if self._should_skip_saving_checkpoint(trainer):
            return
        due = self._deferred and not waits_for_epoch_end(trainer, self.monitor)
        if not due and self._epoch_is_due(trainer):
            due = not self._should_save_on_train_epoch_end(trainer)
        if due:
            self._act(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last checkpoint where none was written yet."""
        if self._should_skip_saving_checkpoint(trainer):
            return
        metrics = self._monitor_candidates(trainer)
        if self._deferred and self.monitor is not None and self.monitor not in metrics:
            warn(str(missing(trainer, f"ModelCheckpoint(monitor={self.monitor!r})", self.monitor, metrics)))
        books = self._ahead()
        if self.save_last and not books.newest and not books.last_model_path:
            self._save_last_checkpoint(trainer, metrics)

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
        if not self.save_on_exception or step == self._books.saved_step or not is_real_fit(trainer):
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
                self._save_checkpoint(trainer, plan.path)
            except Exception as error:  # what ended the run must be what the user sees
                self._open = []
                warn(f"ModelCheckpoint(save_on_exception=True): {plan.path} was not saved: {error}")
                return
            if plan.is_last:
                self._enter(trainer, plan)
        self._books.saved_step = step

    def _seconds_left(self) -> float:
        interval = self._train_time_interval
        return float("inf") if interval is None else self._last_time + interval.total_seconds() - time.monotonic()

    def _should_save_on_train_epoch_end(self, trainer: Trainer) -> bool:
        """Return whether the epoch trigger acts at the epoch's end, and not after validation; every rank calls it."""
        return acts_at_epoch_end(trainer, self._save_on_train_epoch_end, self.monitor)

    def _epoch_is_due(self, trainer: Trainer) -> bool:
        return self._every_n_epochs > 0 and (trainer.current_epoch + 1) % self._every_n_epochs == 0

    def _named(self) -> set[str]:
        return set(files.fields(self.filename)) - {"epoch", "step"}

    def _needs_metrics(self) -> bool:
        return self.monitor is not None or bool(self._named())


ModelCheckpoint._ours = {name: getattr(ModelCheckpoint, name) for name in TAKING_PART}
