"""A trainer's state by the names that users know."""

from __future__ import annotations

import math
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from lt_core.notices import caller
from lt_core.state.progress import Progress, RunningStage, TrainerStatus
from lt_core.state.stage import PREDICT, TEST, TRAIN, VALIDATE, Stage
from lt_core.trainer.loop_views import EvaluationLoop, FitLoop, PredictLoop
from lt_interface import World
from lt_interface.abilities import fact
from lt_interface.errors import MisconfigurationException

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    import torch
    from torch import Tensor
    from torch.optim import Optimizer

    from lt_core.callback import Callback
    from lt_core.config.flags import TrainerConfig
    from lt_core.data.feed import Feed
    from lt_core.metrics.results import Results
    from lt_core.optim.parse import SchedulerConfig
    from lt_core.state.run import Run
    from lt_core.tracking.history import History
    from lt_interface import Accelerator, ClusterEnvironment, Collectives, Launcher, Outcome, Precision, Strategy

__all__ = ["TrainerView"]


def _live(attribute: str, doc: str) -> Any:
    """Return a property whose change the loop looks up before its next step."""

    def change(self: TrainerView, value: Any) -> None:
        setattr(self, attribute, value)
        self._call_attention()

    return property(attrgetter(attribute), change, doc=doc)


def _running(stage: RunningStage, doc: str) -> Any:
    """Return a property for whether a stage runs; it may be set, which enters the stage by hand or leaves it."""

    def switch(self: TrainerView, on: bool) -> None:
        if on or self.state.stage is stage:
            self.state.stage = stage if on else None

    return property(lambda self: self.state.stage is stage, switch, doc=doc)


class TrainerView:
    """Properties of `Trainer`: what it consists of, where its run is, and what it knows."""

    _run: Run | None = None
    _last_fit: Run | None = None
    _returned: Outcome | None = None
    _journal: Any = None
    _run_id: str | None = None  # of this trainer's last fit
    _own_ckpt_path: str | os.PathLike[str] | None = None
    _own_io: Any = None
    _announced: bool = False
    _trial: Callable[..., Any] | None = None  # what a copy of a trainer calls where its loops would run
    _save_counter: int = 0
    _should_stop: bool = False
    _given: dict[str, Any]
    _stop_requests: dict[int, str]
    _stopper: str = ""
    _stop_reason: str | None = None
    _max_epochs: int
    min_epochs: int
    _max_steps: int
    _progress: Progress
    _config: TrainerConfig
    _accelerator: Accelerator
    _strategy: Strategy
    _launcher: Launcher
    _cluster: ClusterEnvironment | None
    _precision: Precision
    _devices: tuple[int, ...]
    _num_nodes: int
    state: Any
    callbacks: list[Callback]

    # ------------------------------------------------------------ limits that may be changed while training runs

    max_epochs: int = _live("_max_epochs", "After how many epochs training stops; -1 for no limit.")
    max_steps: int = _live("_max_steps", "After how many optimizer steps training stops; -1 for no limit.")

    @property
    def should_stop(self) -> bool:
        """Return whether training stops at the next chance; set True to stop, False to take back all requests."""
        return self._should_stop or bool(self._stop_requests)

    @should_stop.setter
    def should_stop(self, stop: bool) -> None:
        self._should_stop, self._stopper = bool(stop), f"in {caller()}" if stop else ""
        if not stop:
            self._stop_requests.clear()
        self._call_attention()

    @property
    def stop_reason(self) -> str | None:
        """Return why the last fit ended; None before one has, and while one runs.

        ``"max_epochs"``, ``"max_steps"``, ``"no_batches"``, or a word and details: ``"should_stop: in Net.training_step
        (train.py:12)"``, ``"EarlyStopping: ..."``, ``"Timer: max_time ..."``, ``"signal: SIGTERM"`` or
        ``"error: OSError"``.
        """
        return self._stop_reason

    def _call_attention(self) -> None:
        """Make the loop look up what was changed."""
        if self._run is not None:
            self._run.loop.look_up()

    # ------------------------------------------------------------ parts

    @property
    def accelerator(self) -> Accelerator:
        """Return the accelerator."""
        return self._accelerator

    @property
    def strategy(self) -> Strategy:
        """Return the strategy."""
        return self._strategy

    @property
    def launcher(self) -> Launcher | None:
        """Return what starts the ranks; None where this process is the only one, or others were started before it."""
        return None if self._launcher.passes == "live" else self._launcher

    @property
    def cluster_environment(self) -> ClusterEnvironment | None:
        """Return the scheduler that started this process, or None."""
        return self._cluster

    @property
    def parallel_devices(self) -> list[Any]:
        """Return the devices on this node."""
        return [self._accelerator.device(index) for index in self._devices]

    @property
    def precision_plugin(self) -> Precision:
        """Return the precision's plugin."""
        return self._precision

    @property
    def precision(self) -> str:
        """Return the precision's name, such as ``"32-true"``."""
        return self._precision.name

    @property
    def scaler(self) -> Any:
        """Return the gradient scaler, or None."""
        return getattr(self._precision, "scaler", None)

    @property
    def model(self) -> Any:
        """Return the module as it is run: wrapped, if the strategy wraps it."""
        return None if self._run is None else getattr(self._run.engine, "model", self._run.module)

    @property
    def lightning_module(self) -> Any:
        """Return the user's module, or None before the first run."""
        return None if self._run is None else self._run.module

    @property
    def datamodule(self) -> Any:
        """Return the data module of this or the last run, or None."""
        return None if self._run is None else self._run.datamodule

    def _whole_run(self) -> Run | None:
        """Return the run; after a fit in other processes its optimizers are made here, once somebody asks for them."""
        returned, self._returned = self._returned, None
        if self._run is not None and returned is not None:
            from lt_core.run.build import restore_optimizers

            try:
                restore_optimizers(self._run, returned.optimizer_states, returned.scheduler_states)
            except BaseException:
                self._returned = returned  # so that nobody takes optimizers without their states for those of the ranks
                raise
        return self._run

    @property
    def optimizers(self) -> list[Optimizer]:
        """Return the optimizers."""
        run = self._whole_run()
        return [] if run is None else run.optimizers

    @optimizers.setter
    def optimizers(self, new: list[Optimizer]) -> None:
        if self._run is None:
            raise AttributeError("trainer.optimizers = ...: there is no run yet. Exchange them inside fit.")
        self._run.optimizers[:] = new
        self._run.loop.look_up()

    def renew_optimizers(self) -> None:
        """Call ``configure_optimizers`` again and go on with what it returns, as after unfreezing; every rank calls it.

        Example::

            def on_train_epoch_start(self):
                if self.current_epoch == 5:
                    self.backbone.requires_grad_(True)
                    self.trainer.renew_optimizers()

        Raises:
            MisconfigurationException: If fit does not run.
        """
        from lt_core.run.build import renew_optimizers

        if self._run is None or not self._run.metrics.live or not self._run.fits:
            raise MisconfigurationException("trainer.renew_optimizers: optimizers are exchanged only inside fit.")
        renew_optimizers(self._run)

    @property
    def lr_scheduler_configs(self) -> list[SchedulerConfig]:
        """Return the schedulers with their intervals."""
        run = self._whole_run()
        return [] if run is None else run.schedulers

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """Return the newest value of every logged name, as 0-dim tensors."""
        if self._run is None:
            return self._results.callback
        return self._results.read_callback(self._run.metrics.current)

    _results: Results

    def share_metrics(self) -> None:
        """Reduce values with ``sync_dist`` that a hook of a batch's end logged, so that all ranks read the same.

        Every rank must call it at the same place. What was logged before these hooks is reduced already.
        """
        if self._run is not None and not self._run.loop.alone:
            self._run.metrics.train.share()

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """Return the newest value of every name that loggers get, as 0-dim tensors; it may not be due for them yet."""
        logged = self._results.logged_tensors()
        if self._run is not None:
            newest = self.callback_metrics
            logged |= {name: newest[name] for name in self._run.metrics.current.logger_names() if name in newest}
        return logged

    @property
    def epoch_metrics(self) -> frozenset[str]:
        """Return the names whose values in `callback_metrics` are training's over the epoch.

        From a validation inside the epoch on these are the values over its part up to that validation.
        """
        return frozenset() if self._run is None else self._run.metrics.of_epoch()

    @property
    def validated_in_epoch(self) -> bool:
        """Return whether a validation began in the running epoch."""
        return self._run is not None and self._run.loop.fit.validated_batch >= 0

    @property
    def logged_step(self) -> int:
        """Return how many steps were made when step values were logged last; 0 before the first time."""
        return 0 if self._run is None else self._run.loop.fit.logged_step

    @property
    def epoch_is_over(self) -> bool:
        """Return whether ``on_train_epoch_end`` runs at its epoch's real end, and not at a stop that leaves it open."""
        return self._run is not None and self._run.loop.fit.left < 0

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """Return what the progress bar shows."""
        if self._run is None:
            return self._results.bar
        return self._results.read_bar(self._run.metrics.current)

    def shown_metrics(self) -> dict[str, float]:
        """Return `progress_bar_metrics` without waiting for a device: a value there is that of the last logged step."""
        if self._run is None:
            return self._results.bar
        return self._results.read_bar(self._run.metrics.current, wait=not self._run.trainer.log_every_n_steps)

    @property
    def history(self) -> History:
        """Return what the newest fit logged, resumed parts included: a list a name, one value an epoch."""
        from lt_core.tracking.history import History

        epochs = self._progress.epoch + (not self._progress.epoch_closed)
        return History() if self._journal is None else History.read(self._journal, epochs)

    # ------------------------------------------------------------ ranks and devices

    @property
    def global_rank(self) -> int:
        """Return this process's rank among all."""
        return 0 if self._run is None else self._run.world.rank

    @property
    def local_rank(self) -> int:
        """Return this process's rank on its node."""
        return 0 if self._run is None else self._run.world.local_rank

    @property
    def node_rank(self) -> int:
        """Return this node's rank."""
        return 0 if self._run is None else self._run.world.node_rank

    @property
    def world_size(self) -> int:
        """Return the number of processes."""
        if self._run is not None:
            return self._run.world.size
        return self.num_nodes * (1 if self._strategy.one_process_per_node else self.num_devices)

    @property
    def num_nodes(self) -> int:
        """Return the number of nodes."""
        return self._num_nodes

    @property
    def device_ids(self) -> list[int]:
        """Return the device indices on this node."""
        return list(self._devices)

    @property
    def num_devices(self) -> int:
        """Return the number of devices on this node."""
        return len(self._devices)

    @property
    def is_global_zero(self) -> bool:
        """Return whether this is rank 0."""
        return self.global_rank == 0

    @property
    def root_device(self) -> torch.device:
        """Return the device of this rank; before a run, the one that it will take if this process is a rank."""
        return self._strategy.device

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Return what a DistributedSampler of the user's own would need: the ranks that receive different samples."""
        world = World(data_size=self.world_size) if self._run is None else self._run.world
        return {"num_replicas": world.data_size, "rank": world.data_rank}

    @property
    def log_dir(self) -> str | None:
        """Return the folder of the first logger's run, else the root folder."""
        folder = fact(self.logger, "log_dir") or fact(self.logger, "save_dir")
        return str(folder) if folder else self.default_root_dir

    loggers: list[Any]
    default_root_dir: str

    @property
    def collectives(self) -> Collectives:
        """Return the exchange between the ranks, to let all of them decide alike; ready from ``setup`` on.

        Example::

            def on_validation_end(self, trainer, pl_module):
                if trainer.collectives.any(self.out_of_memory):  # on one rank, so on all
                    trainer.should_stop = True
        """
        return self._strategy.collectives if self._run is None else self._run.collectives

    @property
    def resumed_from(self) -> str | None:
        """Return the checkpoint that this or the last run took its state from, or None."""
        return None if self._run is None else self._run.resumed.path

    @property
    def was_to_resume(self) -> bool:
        """Return whether this or the last call was asked to resume, by a path or a word, whatever was found."""
        return self._run is not None and self._run.resumed.asked

    @property
    def requested_checkpoints(self) -> list[str]:
        """Return the paths that `request_checkpoint` was given and that are not safe on the disk yet."""
        saves = None if self._run is None else self._run.saves
        return [] if saves is None else [request.path for request in (*saves.queue, *saves.in_flight)]

    @property
    def ckpt_path(self) -> str | os.PathLike[str] | None:
        """Return the checkpoint that this or the last run began with, or None; one that is set holds for every run."""
        if self._own_ckpt_path is not None or self._run is None:
            return self._own_ckpt_path
        return self._run.resumed.path

    @ckpt_path.setter
    def ckpt_path(self, path: str | os.PathLike[str] | None) -> None:
        self._own_ckpt_path = path

    # ------------------------------------------------------------ counters

    @property
    def global_step(self) -> int:
        """Return in how many batches an optimizer stepped."""
        return self._counts("global_step", self._progress.step)

    def _counts(self, name: str, own: int) -> int:
        """Return the trainer's own count, or that of the checkpoint which is evaluated."""
        run = self._run
        if run is None or run.fits or not (run.metrics.live or self._progress == Progress()):
            return own
        return run.resumed.counts.get(name, own)

    @property
    def current_epoch(self) -> int:
        """Return the running epoch's index: the number of completed ones; that of the checkpoint in an evaluation."""
        return self._counts("epoch", self._progress.epoch)

    @property
    def batches_done(self) -> int:
        """Return how many batches of the running training epoch are done; 0 between epochs."""
        return 0 if self._progress.epoch_closed else self._progress.batch

    @property
    def at_boundary(self) -> bool:
        """Return whether the run stands between two steps, where a checkpoint is an exact point to resume from."""
        return self._run is not None and self._run.loop.at_boundary

    def validates_after(self, batch_idx: int) -> bool:
        """Return whether validation follows this batch of the running training epoch, as far as counts say.

        A callback that needs a metric of validation waits for it: ``on_train_batch_end`` comes before it.

        Args:
            batch_idx: The batch's index in its epoch, from 0.

        Returns:
            False also before the first epoch, and where ``val_check_interval`` is a time: a clock says nothing ahead.
        """
        run = self._run
        if run is None or not run.cadence.validates or run.cadence.val_seconds is not None:
            return False
        return not run.window_open(batch_idx) and run.cadence.validation_due(batch_idx, run.is_last_batch(batch_idx))

    @property
    def is_last_batch(self) -> bool:
        """Return whether the running batch is the last of its epoch."""
        run = self._run
        return run is not None and self._feed(TRAIN) is not None and run.is_last_batch(self._progress.batch)

    @property
    def fit_loop(self) -> FitLoop:
        """Return a view of training's counts, by the names that other code reads."""
        return FitLoop(self)

    @property
    def validate_loop(self) -> EvaluationLoop:
        """Return a view of the validation's sizes."""
        return EvaluationLoop(self, "validate_loop", "num_val_batches")

    @property
    def test_loop(self) -> EvaluationLoop:
        """Return a view of the test's sizes."""
        return EvaluationLoop(self, "test_loop", "num_test_batches")

    @property
    def predict_loop(self) -> PredictLoop:
        """Return a view of the prediction's sizes, and of its batches' indices."""
        return PredictLoop(self)

    @property
    def num_training_batches(self) -> int | float:
        """Return the batches of a training epoch; inf if unknown."""
        feed = self._feed(TRAIN)
        return math.inf if feed is None else feed.num_batches

    def _feed(self, stage: Stage) -> Feed | None:
        """Return a stage's feed, if it was made."""
        return None if self._run is None else self._run.feeds.made.get(stage.word)

    def _sizes(self, stage: Stage) -> list[int | float]:
        """Return the sizes of a stage's loaders; no loader hook is called that the run does not call anyway."""
        from lt_core.data.sources import feed_of, has_loader

        run = self._run
        if run is None:
            return []
        runs = self.enable_validation if run.fits and stage is VALIDATE else run.stage is stage
        if stage.word not in run.feeds.made and not (runs and has_loader(run, stage)):
            return []
        return list(feed_of(run, stage).sizes)

    @property
    def num_val_batches(self) -> list[int | float]:
        """Return each validation loader's batches."""
        return self._sizes(VALIDATE)

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Return how many batches of each validation loader the sanity check runs."""
        return [min(self.num_sanity_val_steps, n) for n in self.num_val_batches]

    num_sanity_val_steps: int | float

    @property
    def num_test_batches(self) -> list[int | float]:
        """Return each test loader's batches."""
        return self._sizes(TEST)

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Return each predict loader's batches."""
        return self._sizes(PREDICT)

    @property
    def val_check_batch(self) -> int | float:
        """Return after how many batches validation is due."""
        from lt_core.loops.boundary import validation_batches

        size = self.num_training_batches
        return validation_batches(self.val_check_interval, size, self.check_val_every_n_epoch, size)

    val_check_interval: Any
    check_val_every_n_epoch: int | None

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Return how many optimizer steps fit will make; loads the training data if it must. Every rank must ask.

        Raises:
            MisconfigurationException: If there is no run to ask.
        """
        from lt_core.data.sources import feed_of

        if self._run is None or not self._run.fits:
            raise MisconfigurationException("trainer.estimated_stepping_batches: known only inside fit, from setup on.")
        limit = math.inf if self.max_steps == -1 else self.max_steps
        batches = math.inf if self.max_epochs == -1 else feed_of(self._run, TRAIN).foresee()
        if batches == math.inf:
            return limit
        return min(math.ceil(batches / max(self.accumulate_grad_batches, 1)) * max(self.max_epochs, 1), limit)

    accumulate_grad_batches: int

    # ------------------------------------------------------------ what is going on

    training: bool = _running(RunningStage.TRAINING, "Whether a training batch or epoch runs.")
    validating: bool = _running(RunningStage.VALIDATING, "Whether validation runs.")
    testing: bool = _running(RunningStage.TESTING, "Whether test runs.")
    predicting: bool = _running(RunningStage.PREDICTING, "Whether predict runs.")
    sanity_checking: bool = _running(RunningStage.SANITY_CHECKING, "Whether the sanity check runs.")

    @property
    def evaluating(self) -> bool:
        """Return whether validation, test or the sanity check runs."""
        return self.state.stage is not None and self.state.stage.evaluating

    @property
    def interrupted(self) -> bool:
        """Return whether the last call ended with an error or a signal."""
        return self.state.status is TrainerStatus.INTERRUPTED

    @property
    def received_sigterm(self) -> bool:
        """Return whether SIGTERM arrived during this run."""
        import signal

        run = self._run
        return run is not None and run.signals is not None and run.signals.received == signal.SIGTERM

    @property
    def enable_validation(self) -> bool:
        """Return whether validation can run: a step, data, and a limit above 0."""
        from lt_core.data.sources import has_loader
        from lt_core.hooks.table import overrides

        run = self._run
        if run is None or not self.limit_val_batches:
            return False
        return overrides(run.module, VALIDATE.step) and has_loader(run, VALIDATE)

    limit_val_batches: int | float

    # ------------------------------------------------------------ callbacks, loggers, loaders

    def _callbacks_of(self, name: str) -> list[Any]:
        import lt_core.callbacks as known

        return [c for c in self.callbacks if isinstance(c, getattr(known, name))]

    @property
    def early_stopping_callbacks(self) -> list[Any]:
        """Return every EarlyStopping."""
        return self._callbacks_of("EarlyStopping")

    @property
    def early_stopping_callback(self) -> Any:
        """Return the first EarlyStopping, or None."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def checkpoint_callbacks(self) -> list[Any]:
        """Return every callback that saves checkpoints."""
        return self._callbacks_of("Checkpoint")

    @property
    def checkpoint_callback(self) -> Any:
        """Return the first callback that saves checkpoints, or None."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def progress_bar_callback(self) -> Any:
        """Return the progress bar, or None."""
        return next(iter(self._callbacks_of("ProgressBar")), None)

    @property
    def logger(self) -> Any:
        """Return the first logger, or None."""
        return self.loggers[0] if self.loggers else None

    @logger.setter
    def logger(self, logger: Any) -> None:
        self.loggers = [logger] if logger else []

    @property
    def train_dataloader(self) -> Any:
        """Return the training loader as the user gave it."""
        return self._user_loaders(TRAIN)

    def _user_loaders(self, stage: Stage) -> Any:
        return getattr(self._feed(stage), "user", None)

    @property
    def val_dataloaders(self) -> Any:
        """Return the validation loaders as the user gave them."""
        return self._user_loaders(VALIDATE)

    @property
    def test_dataloaders(self) -> Any:
        """Return the test loaders as the user gave them."""
        return self._user_loaders(TEST)

    @property
    def predict_dataloaders(self) -> Any:
        """Return the predict loaders as the user gave them."""
        return self._user_loaders(PREDICT)
