"""Define the trainer: flags, entry points, and what users may change while it runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from torch import Tensor

from lt_core.checkpoint.runs import count_fit
from lt_core.config.flags import FLAGS, TrainerConfig, parse, resolve_epochs
from lt_core.config.keywords import answers_unknown, refuse_unknown
from lt_core.config.row import takes_flags
from lt_core.data.stream import batch_seed
from lt_core.hooks.handlers import Handler, make_handler
from lt_core.hooks.table import overrides
from lt_core.metrics.results import Results
from lt_core.names import INNER
from lt_core.notices import info, warn
from lt_core.profilers import PassThroughProfiler
from lt_core.run.build import run_beside
from lt_core.run.ending import ended
from lt_core.run.main import main
from lt_core.run.old_flags import modern
from lt_core.run.outcome import receive
from lt_core.run.prepare import prepare
from lt_core.run.select import (
    Finding,
    default_callbacks,
    find_accelerator,
    find_cluster,
    find_precision,
    find_profiler,
    find_spread,
    make_loggers,
)
from lt_core.state import rng
from lt_core.state.progress import Progress, TrainerFn, TrainerState, TrainerStatus
from lt_core.tracking.dummy import DummyLogger
from lt_core.trainer.old_calls import OldCalls
from lt_core.trainer.view import TrainerView
from lt_interface import WatchesTrainer, registry
from lt_interface.errors import MisconfigurationException
from lt_interface.paths import local_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lt_core.callback import Callback
    from lt_core.datamodule import LightningDataModule
    from lt_core.module import LightningModule
    from lt_core.state.run import Run

__all__ = ["Trainer"]

F = TypeVar("F", bound=Callable[..., Any])


class Trainer(OldCalls, TrainerView):
    """Trainer that fits, validates, tests and predicts with a LightningModule.

    Every flag is checked here, and every problem is reported at once. The flags and their
    meaning are the rows of ``lt_core.config.flags.TrainerConfig``; ``help(Trainer.__init__)`` lists them.

    Raises:
        ConfigError: If a flag is unknown, of the wrong type, out of range, or excludes another.
    """

    @takes_flags(TrainerConfig)
    def __init__(self, written: dict[str, Any]) -> None:
        old = modern(written)
        config = self._config = parse(old.flags, places=old.places, problems=old.problems)
        for message in old.warnings:
            warn(message, FutureWarning)
        self._given = old.given
        self._progress, self.state = Progress(), TrainerState()
        self._handlers: list[Handler] = []
        self._results = Results()
        self._stop_requests: dict[int, str] = {}
        self._take_parts(config)
        self._take_flags(config)
        self._apply_torch_flags(config)
        if isinstance(self._cluster, WatchesTrainer):
            self._cluster.watch(self)

    # ------------------------------------------------------------ construction

    def _take_parts(self, config: TrainerConfig) -> None:
        """Find accelerator, devices, strategy, precision, launcher and profiler through the registry."""
        self._cluster = find_cluster(config)
        with Finding() as finding:
            self._accelerator = finding.call(find_accelerator, config)
            if self._accelerator is not None:
                spread = finding.call(find_spread, config, self._accelerator, self._cluster)
            self._precision = finding.call(find_precision, config, self._accelerator)
            self.profiler: Any = finding.call(find_profiler, config)
        self._devices, self._num_nodes, self._strategy, self._launcher = spread
        self._strategy.trainer = self

    def _take_flags(self, config: TrainerConfig) -> None:
        """Set the plain attributes for the flags that users may read and change."""
        for row in FLAGS.values():
            if row.attribute:
                setattr(self, row.name, getattr(config, row.name))
        if "gradient_clip_algorithm" not in config.explicit:
            self.gradient_clip_algorithm = None  # so that a module may choose its own
        self.callbacks = default_callbacks(config)
        from lt_core.callbacks import Timer

        timer = any(isinstance(c, Timer) for c in self.callbacks)
        self.max_epochs, self.min_epochs = resolve_epochs(config, timer)
        self.max_steps = config.max_steps
        self.loggers = make_loggers(config)

    def _apply_torch_flags(self, config: TrainerConfig) -> None:
        if config.benchmark is not None:
            torch.backends.cudnn.benchmark = config.benchmark
        if config.deterministic is not None:
            torch.use_deterministic_algorithms(bool(config.deterministic), warn_only=config.deterministic == "warn")
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if config.detect_anomaly:
            info("Trainer(detect_anomaly=True): every backward pass is checked; this slows training.")

    @property
    def checkpoint_io(self) -> Any:
        """Return the store of checkpoints: the one that was given, else the strategy's."""
        if self._own_io is None:
            given = self._config.plugin("checkpoint_io")
            self._own_io = registry.checkpoint_ios.get(self._strategy.checkpoint_io())() if given is None else given
            if given is not None:
                from lt_core.checkpoint.format.lightning_names import as_store
                from lt_core.checkpoint.format.reading import remember

                self._own_io = as_store(given)
                remember(self._own_io)
        return self._own_io

    @property
    def _active_profiler(self) -> Any:
        """Return the profiler if it measures anything, else None, so that nothing is wrapped."""
        return None if getattr(self.profiler, "passes_through", False) else self.profiler

    def _changeable(self) -> tuple[Any, ...]:
        """Return what users may change between epochs, to be compared with the last look."""
        live = [getattr(self, row.name) for row in FLAGS.values() if row.live == "epoch"]
        return tuple(tuple(map(id, v)) if isinstance(v, list | tuple) else v for v in (*live, self._handlers))

    # ------------------------------------------------------------ entry points

    @answers_unknown
    def fit(
        self,
        model: LightningModule | None = None,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
        **_unknown: NoReturn,
    ) -> None:
        """Train the model.

        Args:
            model: The module.
            train_dataloaders: A loader, or any nested list or dict of loaders.
            val_dataloaders: The same for validation.
            datamodule: Holds the loaders instead.
            ckpt_path: Resume from a file, from ``"last"``, ``"best"``, ``"hpc"``, or ``"auto"``: resume
                if there is something, else start.
            weights_only: False consents to make the objects that a file of ``torch.save`` holds, which runs what it
                says; our own files hold none.

        Raises:
            ConfigError: If module, data and flags do not fit; lists every problem.
        """
        refuse_unknown(Trainer.fit, _unknown)
        request = prepare(self, TrainerFn.FITTING, model, train_dataloaders, datamodule, ckpt_path, val_dataloaders)
        request.trusted = weights_only is False
        with ended(request):
            receive(request, self._launcher.launch(main, request, request.plan, self._cluster))
        if not self.fast_dev_run:
            count_fit(request.place)

    @answers_unknown
    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
        **_unknown: NoReturn,
    ) -> list[dict[str, float]]:
        """Run one evaluation over the validation set.

        Args:
            model: The module; the last run's, from its best checkpoint, if left out.
            dataloaders: One or several loaders.
            ckpt_path: Weights to load first: a path, ``"best"`` or ``"last"``.
            verbose: Whether to print the metrics.
            datamodule: Holds the loaders instead.
            weights_only: False consents to make the objects that a file of ``torch.save`` holds, which runs what it
                says; our own files hold none.

        Returns:
            One dict of metrics for each loader.
        """
        refuse_unknown(Trainer.validate, _unknown)
        return self._evaluate(TrainerFn.VALIDATING, model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    @answers_unknown
    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
        **_unknown: NoReturn,
    ) -> list[dict[str, float]]:
        """Run one evaluation over the test set.

        Args:
            model: The module; the last run's, from its best checkpoint, if left out.
            dataloaders: One or several loaders.
            ckpt_path: Weights to load first.
            verbose: Whether to print the results.
            datamodule: Holds the loaders instead.
            weights_only: Whether only values and tensors are read from ``ckpt_path``; None is True.

        Returns:
            For each loader its metrics by name.
        """
        refuse_unknown(Trainer.test, _unknown)
        return self._evaluate(TrainerFn.TESTING, model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    @answers_unknown
    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
        **_unknown: NoReturn,
    ) -> list[Any] | None:
        """Return what ``predict_step`` returns for each batch, on the CPU.

        Args:
            model: The module; the last run's, from its best checkpoint, if left out.
            dataloaders: One or several loaders.
            datamodule: Holds the loaders instead.
            return_predictions: Whether to keep and return the predictions.
            ckpt_path: Weights to load first.
            weights_only: False consents to make the objects that a file of ``torch.save`` holds, which runs what it
                says; our own files hold none.

        Returns:
            A list of batches' predictions, a list of such lists for several loaders, or None.
        """
        refuse_unknown(Trainer.predict, _unknown)
        request = prepare(self, TrainerFn.PREDICTING, model, dataloaders, datamodule, ckpt_path)
        request.keep, request.trusted = return_predictions is not False, weights_only is False
        with ended(request):
            outcome = self._launcher.launch(main, request, request.plan, self._cluster)
            predictions: list[Any] | None = receive(request, outcome)
        return predictions

    def _evaluate(
        self,
        fn: TrainerFn,
        model: Any,
        loaders: Any,
        ckpt_path: Any,
        verbose: bool,
        datamodule: Any,
        weights_only: bool | None,
    ) -> list[dict[str, float]]:
        request = prepare(self, fn, model, loaders, datamodule, ckpt_path)
        request.trusted = weights_only is False
        with ended(request):
            outcome = self._launcher.launch(main, request, request.plan, self._cluster)
            results: list[dict[str, float]] = receive(request, outcome)
        if verbose and self.is_global_zero:
            from lt_core.metrics.table import print_results

            print_results(str(fn), results)
        return results

    def _begin(self, run: Run) -> None:
        """Attach a run that is about to be built."""
        self._run, self._returned = run, None
        self._results = run.metrics.results
        self.state.fn, self.state.status = run.fn, TrainerStatus.RUNNING
        if run.fits:
            self._should_stop, self._stopper, self._stop_reason, self._last_fit = False, "", None, None
            self._stop_requests.clear()
            if not self._progress.epoch_closed and not run.saves.kept:  # an earlier fit failed, or had another module
                self._progress.abandon_epoch()
        for owner in (run.module, run.datamodule):
            if owner is not None:
                owner.trainer = self

    def _end(self, run: Run) -> None:
        """Leave the trainer readable after a run."""
        self.state.stage = None
        if run.fits and not self._progress.epoch_closed and run.saves.kept:
            self._last_fit = run

    def _trying(self, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
        """Return what a trainer that only tries something has: of its callbacks those that change batches."""
        changing = [callback for callback in self.callbacks if overrides(callback, "transform_for")]
        loggers = [DummyLogger() for _ in self.loggers]
        return {"callbacks": [*callbacks, *changing], "loggers": loggers, "_handlers": [], "_stop_requests": {}}

    @contextmanager
    def _beside(self, run: Run, callbacks: Sequence[Callback], sources: dict[str, Any]) -> Iterator[Run]:
        """Show a run beside the running one inside a block, and nothing of it afterwards.

        Args:
            run: The run that goes on after the block.
            callbacks: Whose hooks are called, besides those of the callbacks that change batches.
            sources: Loaders by the stage's word.
        """
        shown, before = vars(self), dict(vars(self))
        with ExitStack() as rest:
            rest.callback(shown.update, before)
            rest.callback(shown.clear)
            shown.update(self._trying(callbacks), profiler=PassThroughProfiler(), detect_anomaly=False)
            self._progress, self.state = replace(run.progress), replace(self.state, stage=run.stage.running)
            beside = self._run = run_beside(run, sources)
            rest.callback(beside.metrics.release)
            rest.callback(beside.feeds.close)
            self._results = beside.metrics.results
            yield beside

    # ------------------------------------------------------------ what users call during a run

    def on(self, event: str, *, every: int = 1, once: int | None = None) -> Callable[[F], F]:
        """Attach a function to a hook: ``@trainer.on("train_batch_end", every=100)``.

        Args:
            event: A hook's name, with or without ``on_``.
            every: Call at every so-many-th occurrence.
            once: Call only at this occurrence.

        Returns:
            A decorator that gives the function back unchanged; it may take any leading part of
            ``(trainer, pl_module, *hook arguments)``.
        """

        def attach(function: F) -> F:
            self._handlers.append(make_handler(event, function, every, once))
            return function

        return attach

    def off(self, function: Callable[..., Any]) -> None:
        """Detach a function that `on` attached.

        Args:
            function: The function.
        """
        self._handlers = [h for h in self._handlers if h.function is not function]

    def request_stop(self, by: object, why: str = "") -> None:
        """Ask for training to stop, as ``should_stop = True`` does, in a way that can be taken back.

        Every rank calls it at the same place.

        Args:
            by: Who asks.
            why: What `stop_reason` and the last line of the run say of it.
        """
        self._stop_requests.setdefault(id(by), ": ".join(filter(None, (type(by).__name__, why))))
        if self._run is not None:
            self._run.loop.attention = True

    def withdraw_stop(self, by: object) -> None:
        """Take back what one asked for by `request_stop`, if the stop has not come yet; other requests stand.

        Args:
            by: Who asked.
        """
        self._stop_requests.pop(id(by), None)

    def save_checkpoint(
        self, filepath: str | os.PathLike[str], weights_only: bool | None = False, storage_options: Any = None
    ) -> None:
        """Write a checkpoint now. Inside a hook it is not an exact point to resume from, and says so in the file.

        Args:
            filepath: Where to.
            weights_only: Whether to leave out all that only a resume needs.
            storage_options: Refused by formats that take none.

        Raises:
            AttributeError: If no model was attached by a run.
            OSError: If the disk refuses, on every rank; an older file of that name stays.
            CheckpointError: If a value cannot be kept, on every rank; the file is written without it.
        """
        from lt_core.checkpoint.save import write_now

        run = self._whole_run()
        if run is None or run.engine is None:
            raise AttributeError(
                "trainer.save_checkpoint: no model is attached yet. Call fit, validate, test or predict first."
            )
        if storage_options is not None:
            raise TypeError(
                "trainer.save_checkpoint(storage_options=...): this checkpoint format takes none. Leave it out."
            )
        path = local_path(f"trainer.save_checkpoint({os.fspath(filepath)!r})", filepath)
        write_now(run, path, bool(weights_only))

    def request_checkpoint(
        self,
        path: str | os.PathLike[str],
        weights_only: bool = False,
        saved: Callable[[], Any] | None = None,
        failed: Callable[[BaseException], Any] | None = None,
        together: bool = False,
    ) -> None:
        """Ask for a checkpoint at the next boundary: after this batch's hooks, logging and validation.

        Unlike `save_checkpoint` it may be called in any hook of fit up to ``on_train_end``, and the file is always
        an exact point to resume from. A disk that refuses gives a warning, and training continues.

        Example::

            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                if trainer.global_step == 1000:
                    trainer.request_checkpoint("step-1000.ckpt", saved=lambda: print("saved"))

        Args:
            path: Where to; folders above it are made.
            weights_only: Whether to leave out all that only a resume needs.
            saved: Called once the file is safe on the disk; the place to remove older ones.
            failed: Called with the error if the file could not be written.
            together: Whether every rank asks at this same place, as where the step decides; otherwise several ranks
                hear of it first, and the file is written a batch later.

        Raises:
            MisconfigurationException: If fit does not run.
        """
        from lt_core.checkpoint.save import SaveRequest

        run = self._run
        if run is None or not run.metrics.live or not run.fits:
            raise MisconfigurationException("trainer.request_checkpoint: the loop writes checkpoints only inside fit.")
        name = local_path(f"trainer.request_checkpoint({os.fspath(path)!r})", path)
        run.saves.queue.append(SaveRequest(name, weights_only, saved, failed))
        if together:
            run.loop.attention = True
        else:
            run.loop.look_up()

    def saved_weights(self, path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """Return the weights as a checkpoint has them, by name; every rank calls it.

        Args:
            path: The checkpoint; None means one that would be written now.

        Raises:
            MisconfigurationException: If fit does not run.
            CheckpointError: If the file cannot be read.
        """
        from lt_core.checkpoint.save import weights_of

        run = self._run
        if run is None or not run.metrics.live or not run.fits:
            raise MisconfigurationException("trainer.saved_weights: weights are known only inside fit.")
        weights: dict[str, Any] = weights_of(run) if path is None else run.saves.read(os.fspath(path))["state_dict"]
        return weights

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint the way its format asks; of a link the link alone, and nothing if there is no file.

        Args:
            path: The file or folder.

        Raises:
            OSError: If the disk refuses.
        """
        name = os.fspath(path)
        if os.path.islink(name):
            os.unlink(name)
        elif os.path.exists(name):
            from lt_core.checkpoint.engine_folder import remove_folders

            try:
                self.checkpoint_io.remove(name)
            except IsADirectoryError:  # of a subclass's own format
                shutil.rmtree(name)
            remove_folders(name)

    def log_metrics(self, values: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Log values outside of ``self.log``, for callbacks that measure the run itself; call it on every rank.

        They go to the journal and from there to all loggers, whatever ``log_every_n_steps`` says. Those of the sanity
        check are dropped, as are those that ``self.log`` gets there.

        Example::

            def on_train_epoch_end(self, trainer, pl_module):
                trainer.log_metrics({"memory_mb": torch.cuda.max_memory_allocated() / 2**20})

        Args:
            values: Numbers or 0-dim tensors by name.
            step: The x-axis value; the last step's index if None.

        Raises:
            MisconfigurationException: If no call of the trainer runs, or its journal is not open yet, as in ``setup``.
        """
        run = self._run
        if run is None or not run.metrics.live or not run.tracking.opened:
            raise MisconfigurationException("trainer.log_metrics: known only inside a run, from on_fit_start on.")
        if not self.sanity_checking:
            numbers = {k: v.item() if isinstance(v, Tensor) else v for k, v in values.items()}
            run.log(numbers, step=step)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the context in which the module's forward computes in the trainer's precision.

        Example::

            def on_validation_end(self, trainer, pl_module):
                with torch.no_grad(), trainer.forward_context():
                    pictures = pl_module(self.samples)
        """
        forward = self.precision_plugin.forward
        return nullcontext() if forward is None else forward()

    def forward_training_data(self) -> None:
        """Run the training step on an epoch of training data, without gradients, hooks or logging.

        For statistics that are made in forward, as those of BatchNorm; called on every rank, between two epochs. Random
        state and the place in the data are afterwards as before.

        Raises:
            MisconfigurationException: If fit does not run.
        """
        from lt_core.loops.forward_only import forward_only

        run = self._run
        if run is None or not run.metrics.live or not run.fits:
            raise MisconfigurationException("trainer.forward_training_data: there is training data only inside fit.")
        forward_only(run)

    @contextmanager
    def own_random_state(self) -> Iterator[None]:
        """Draw, inside this block, what the seed, the epoch and the step decide: the same on every rank, and resumed.

        The random state is afterwards as before.
        """
        run = self._run
        with rng.isolate(self.accelerator, self.root_device):
            torch.manual_seed(
                batch_seed(0 if run is None else run.plan.seed, self.current_epoch, 0, 0, self.global_step)
            )
            yield

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on the first process of this node, above the progress bar."""
        if self.local_rank != 0:
            return
        bar = self.progress_bar_callback
        write = print if bar is None else bar.print
        write(*args, **kwargs)

    @contextmanager
    def init_module(self, empty_init: bool | None = None) -> Iterator[None]:
        """Construct a module on the right device and in the right precision inside this block.

        Args:
            empty_init: Whether to leave weights uninitialised because they will be loaded.
        """
        with self._strategy.init_context(empty_init), self._precision.init_context():
            yield

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the run: module, data and optimizers belong to it."""
        return {key: value for key, value in vars(self).items() if key not in ("_run", "_last_fit", "_returned")}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(INNER.get(name, name))
        from lt_interface.errors import nearest

        hint = nearest(name, [n for n in dir(type(self)) if not n.startswith("_")])
        raise AttributeError(f"Trainer has no attribute {name!r}. {hint}".strip())
