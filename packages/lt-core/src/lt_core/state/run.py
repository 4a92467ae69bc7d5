"""Hold all parts of one call of the trainer in one rank."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from lt_core.metrics.store import FORBIDDEN, SILENT, MetricStore
from lt_core.state.progress import RunningStage, TrainerFn
from lt_interface import Plan, World

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from lt_core.callback import Callback
    from lt_core.checkpoint.save import SaveRequest
    from lt_core.data.feed import Feed
    from lt_core.hooks.table import HookTable
    from lt_core.loops.cadence import Cadence
    from lt_core.optim.wrapper import LightningOptimizer, SchedulerConfig
    from lt_core.state.progress import Progress
    from lt_core.state.signals import SignalWatch
    from lt_core.tracking.journal import Journal
    from lt_core.tracking.lock import JournalLock
    from lt_core.tracking.sender import Delivery
    from lt_core.trainer import Trainer
    from lt_interface import Accelerator, Collectives, Engine, Precision, Strategy

__all__ = ["Run"]


class Run:
    """Be the one place where a run's parts are found; built once by ``build_run``.

    Attributes:
        attention: Set by anything that wants the loop to look up before its next due batch:
            a stop, a save request, a signal.
        stepped: Set by an optimizer's step under manual optimization, cleared by the loop.
        before_validation: What the running validation began with; a run that is stopped inside it repeats it.
        seen_batches: How many batches each evaluation loader gave so far: the x-axis of what is logged by step there.
    """

    strategy: Strategy
    accelerator: Accelerator
    precision: Precision
    collectives: Collectives
    engine: Engine
    hooks: HookTable
    journal: Journal
    checkpoint_io: Any
    device: torch.device
    cadence: Cadence
    feed: Feed
    step: Callable[[Any, int], Any]

    def __init__(self, trainer: Trainer, fn: TrainerFn, module: Any, datamodule: Any, plan: Plan) -> None:
        self.trainer = trainer
        self.fn = fn
        self.plan = plan
        self.module = module
        self.datamodule = datamodule
        self.callbacks: list[Callback] = trainer.callbacks
        self.progress: Progress = trainer._progress
        self.world = World()
        self.optimizers: list[Optimizer] = []
        self.lightning_optimizers: list[LightningOptimizer] = []
        self.schedulers: list[SchedulerConfig] = []
        self.deliveries: list[Delivery] = []
        self.inline_deliveries: list[Delivery] = []
        self.eval_feeds: dict[str, Feed] = {}
        self.sources: dict[str, Any] = {}
        self.save_queue: list[SaveRequest] = []
        self.signals: SignalWatch | None = None
        self.attention = False
        self.stepped = False
        self.at_boundary = True
        self.loaded: dict[str, Any] | None = None
        self.resume_path: str | None = None
        self.config_seen: tuple[Any, ...] = ()
        self.val_clock = 0.0
        self.epoch_schedulers_done = False
        self.logged_step = 0
        self.in_flight: list[SaveRequest] = []
        self.loggers: list[Any] = []
        self.rewound: dict[int, bool] = {}
        self.adopts = False  # whether the run goes on in the folder of the one that it resumes
        self.samples_seen = 0
        self.journal_file: str | None = None
        self.locks: list[JournalLock] = []
        self.place: Callable[[Any, int], Any] | None = None
        self.pending: str | None = None
        self.before_validation: dict[str, Any] | None = None
        self.validated_batch = -1
        self.warned_none = False
        self.warned_closure = False
        self.feed_epoch = 0
        self.eval_epochs: dict[str, int] = {}
        self.seen_batches: dict[str, int] = {}
        self.compiled: dict[str, Callable[..., Any]] = {}
        self.own_step: Callable[..., Any] | None = None  # a training_step that was put on the instance
        self.train_metrics = MetricStore()
        self.eval_metrics: MetricStore | None = None
        self.base_scope = SILENT if trainer.barebones else FORBIDDEN
        self.use_store(self.train_metrics)

    def use_store(self, store: MetricStore) -> None:
        """Make a store the one that ``self.log`` writes to."""
        if self.base_scope == SILENT:
            store.scope = SILENT
        self.module._metrics = store
        store.module = self.module
        if "hooks" in self.__dict__:
            self.hooks.store = store

    @property
    def store(self) -> MetricStore:
        """Return the store that ``self.log`` writes to at this moment."""
        store: MetricStore = self.module._metrics
        return store

    def count_samples(self) -> None:
        """Add the samples that the feed handed out since the last count."""
        if "feed" in self.__dict__:
            seen = sum(leaf.samples for leaf in self.feed.leaves)
            self.progress.samples += max(seen - self.samples_seen, 0)
            self.samples_seen = seen

    @property
    def axis(self) -> int:
        """Return the x-axis value of what is logged now: the 0-based index of the last step."""
        if self.fn is not TrainerFn.FITTING:
            return self.progress.step
        return max(self.progress.step - 1, 0)

    def is_last_batch(self, index: int) -> bool:
        """Return whether batch ``index`` of the running epoch is its last."""
        return index + 1 >= self.feed.num_batches or self.feed.last

    def window(self, index: int) -> tuple[int, bool, bool]:
        """Return the length of batch ``index``'s accumulation window, and whether it opens and closes it."""
        n = self.plan.accumulate
        start = index - index % n
        total = self.feed.num_batches
        length = int(min(n, total - start)) if total != float("inf") else n
        return length, index == start, index + 1 - start >= length or self.feed.last

    def window_open(self, index: int) -> bool:
        """Return whether batch ``index`` leaves an accumulation window open behind it."""
        return bool(self.module.automatic_optimization) and not self.window(index)[2]

    def clip(self, optimizer: Any, value: float | None, algorithm: str | None) -> None:
        """Clip the gradients of one of the run's optimizers; a value of None or 0 does nothing."""
        if not value:
            return
        raw = getattr(optimizer, "optimizer", optimizer)
        index = next(i for i, o in enumerate(self.optimizers) if o is raw)
        self.engine.clip(index, float(value), algorithm or "norm")

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the precision's forward context, or one that does nothing."""
        return self.precision.forward() if self.precision.forward is not None else nullcontext()

    def log(
        self, values: dict[str, float], stage: str | None = None, step: int | None = None, of: str = "step"
    ) -> None:
        """Append due values to the journal and remember them as logged.

        Args:
            values: Numbers by name.
            stage: The stage they belong to; the running one if None.
            step: The x-axis value; the last step's index if None.
            of: What they are values of, as `lt_interface.Record.axis` lists.
        """
        if not values:
            return
        trainer = self.trainer
        axis = self.axis if step is None else step
        if "step" in values:  # a logged value of that name sets the x-axis
            axis = int(values.pop("step"))
        values.setdefault("epoch", self.progress.epoch)
        trainer._logged_metrics.update(values)
        self.journal.append(stage or str(trainer.state.stage or "train"), of, axis, values)
        for delivery in self.inline_deliveries:
            delivery.send()

    @property
    def sanity_checking(self) -> bool:
        """Return whether the sanity check runs."""
        return self.trainer.state.stage is RunningStage.SANITY_CHECKING
