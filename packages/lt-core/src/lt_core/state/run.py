"""The parts of one call of the trainer in one rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch

from lt_core.notices import warn
from lt_core.state.loop_state import LoopState
from lt_core.state.progress import RunningStage, TrainerFn
from lt_core.state.stage import TRAIN, Stage
from lt_core.state.timing import hook_action, timed, timed_items
from lt_interface import MisconfigurationException, PlainCollectives, Plan, Problem, World

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from lt_core.callback import Callback
    from lt_core.checkpoint.runs import RunRecord
    from lt_core.checkpoint.save import Saves
    from lt_core.data.feed import Feed
    from lt_core.data.sources import Feeds
    from lt_core.hooks.table import HookTable
    from lt_core.loops.boundary import Cadence
    from lt_core.metrics.results import Metrics
    from lt_core.optim.parse import SchedulerConfig
    from lt_core.optim.wrapper import LightningOptimizer
    from lt_core.state.progress import Progress
    from lt_core.state.signals import SignalWatch
    from lt_core.tracking.opening import Tracking
    from lt_core.trainer import Trainer
    from lt_interface import Collectives, Engine, Precision, Strategy

__all__ = ["Resumed", "Run"]

_UNBUILT = cast("Any", None)  # until build_run has come to the part


@dataclass
class Resumed:
    """Checkpoint that a run began with.

    Attributes:
        asked: Whether the call was asked to resume, by a path or a word, whatever was found.
        path: The file; None for a run that began without one.
        tree: What it holds, until the last part is restored.
        counts: The epoch and the global step that it names.
        waiting: The moments whose parts are not restored yet: a checkpoint that is written now has them from the tree.
    """

    asked: bool = False
    path: str | None = None
    tree: dict[str, Any] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)


@dataclass(eq=False)
class Run:
    """Parts of one call of the trainer in one rank; `lt_core.run.build` alone writes them.

    Attributes:
        stage: What the call began with: training, validation, test or prediction.
        compiled: Compiled forms of the module's methods by name, for a module that ``torch.compile`` wraps.
        lightning_optimizers: What users get from ``self.optimizers()``, one for each of ``optimizers``.
        record: What its checkpoints say of this fit, and of how it ends; of another stage's run the fit's before it.
        loop: What the running loops know; the one part that changes with each batch, beside the progress.
    """

    trainer: Trainer
    stage: Stage
    plan: Plan
    module: Any
    datamodule: Any
    callbacks: list[Callback]
    progress: Progress
    strategy: Strategy
    precision: Precision
    metrics: Metrics
    feeds: Feeds
    tracking: Tracking
    saves: Saves
    cadence: Cadence
    compiled: dict[str, Callable[..., Any]] = field(default_factory=dict)
    world: World = field(default_factory=World)
    loop: LoopState = field(default_factory=LoopState)
    resumed: Resumed = field(default_factory=Resumed)
    optimizers: list[Optimizer] = field(default_factory=list)
    schedulers: list[SchedulerConfig] = field(default_factory=list)
    lightning_optimizers: list[LightningOptimizer] = field(default_factory=list)
    record: RunRecord | None = None
    signals: SignalWatch | None = None
    hooks: HookTable = _UNBUILT
    engine: Engine = _UNBUILT

    @property
    def fn(self) -> TrainerFn:
        """Return the trainer's method that was called."""
        return self.stage.fn

    @property
    def fits(self) -> bool:
        """Return whether the call was ``fit``."""
        return self.stage is TRAIN

    @property
    def device(self) -> torch.device:
        """Return this rank's device."""
        return self.strategy.device

    @property
    def collectives(self) -> Collectives:
        """Return the exchange with the other ranks."""
        return PlainCollectives() if self.loop.alone else self.strategy.collectives

    def timed(self, function: Callable[..., Any], of: str) -> Callable[..., Any]:
        """Return a call of the strategy, ``of`` its name, wrapped for the profiler where there is one."""
        return self.action(function, f"[Strategy]{type(self.strategy).__name__}.{of}")

    def action(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return a function as an action of the profiler where there is one."""
        return timed(self.trainer._active_profiler, function, name)

    def hook(self, function: Callable[..., Any], owner: Any, name: str) -> Callable[..., Any]:
        """Return the method ``name`` of a user's object, found already, as an action of the profiler."""
        return timed(self.trainer._active_profiler, function, hook_action(owner, name))

    def timed_batches(self, batches: Iterable[Any], stage: Stage) -> Iterable[Any]:
        """Return batches whose fetching is wrapped for the profiler where there is one."""
        return timed_items(self.trainer._active_profiler, batches, stage.fetching)

    @property
    def feed(self) -> Feed:
        """Return the training data's feed; it must have been made."""
        return self.feeds.made[TRAIN.word]

    def count_samples(self) -> None:
        """Add the samples that the feed handed out in the running epoch since the last count."""
        if TRAIN.word in self.feeds.made and self.feed.began(self.progress.epoch):
            seen = self.feed.samples
            self.progress.samples += max(seen - self.loop.fit.samples_seen, 0)
            self.loop.fit.samples_seen = seen

    @property
    def accumulate(self) -> int:
        """Return how many batches an accumulation window has; one where the user, or nobody, steps an optimizer."""
        return self.plan.accumulate if self.module.automatic_optimization and self.optimizers else 1

    @property
    def axis(self) -> int:
        """Return the x-axis value of what is logged now: the 0-based index of the last step."""
        return max(self.progress.step - 1, 0) if self.fits else self.progress.step

    def is_last_batch(self, index: int) -> bool:
        """Return whether batch ``index`` of the running epoch is its last."""
        feed = self.feed
        return index + 1 >= feed.num_batches if feed.exact else feed.last

    def window(self, index: int) -> tuple[int, bool, bool]:
        """Return the length of batch ``index``'s accumulation window, and whether it opens and closes it.

        The length of an epoch's last window is what the loader's length says; the data decides where it closes.
        """
        n = self.plan.accumulate
        start = index - index % n
        return self.window_length(start), index == start, index + 1 - start >= n or self.feed.last

    def window_length(self, start: int) -> int:
        """Return the length of the accumulation window that batch ``start`` opens."""
        n, left = self.plan.accumulate, self.feed.num_batches - start
        return int(min(n, left)) if left > 0 else n

    def window_open(self, index: int) -> bool:
        """Return whether batch ``index`` leaves an accumulation window open behind it."""
        return self.accumulate > 1 and not self.window(index)[2]

    def index_of(self, optimizer: Any) -> int | None:
        """Return the place of an optimizer, the engine's or a handle's too, among the run's; None for others."""
        known = {id(optimizer), id(getattr(optimizer, "optimizer", optimizer))}
        pairs = zip(self.optimizers, self.engine.optimizers, strict=False)
        return next((i for i, pair in enumerate(pairs) if known & set(map(id, pair))), None)

    def clip(self, optimizer: Any, value: float | None, algorithm: str | None) -> None:
        """Clip the gradients of one of the run's optimizers; a value of None or 0 does nothing.

        Raises:
            MisconfigurationException: If the engine does not step the optimizer.
        """
        if not value:
            return
        if "clip" in self.engine.owns:
            if self.loop.first_time("clip"):
                who = f"LightningModule.clip_gradients: the engine of strategy {self.plan.strategy!r}"
                warn(f"{who} clips by itself, so this call does nothing. Write Trainer(gradient_clip_val=...).")
            return
        index = self.index_of(optimizer)
        if index is None:
            rule, got = "the optimizer must be one that this epoch began with", type(optimizer).__name__
            where = f"{type(self.module).__name__}.clip_gradients"
            raise MisconfigurationException(Problem(where, rule, got, "Pass one of self.optimizers()."))
        if self.precision.scales and "unscale" not in self.engine.owns:  # a second time it does nothing
            self.engine.unscale(index)
        self.engine.clip(index, float(value), algorithm or "norm")

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
        self.metrics.results.note_logged(values)
        due = dict(values)
        axis = self.axis if step is None else step
        if "step" in due:  # a logged value of that name sets the x-axis
            axis = int(due.pop("step"))
        due.setdefault("epoch", self.progress.epoch)
        append = self.action(self.tracking.append, "[Trainer]log")
        epoch = self.progress.epoch if self.fits else None
        append(stage or str(self.trainer.state.stage or "train"), of, axis, due, epoch)

    @property
    def sanity_checking(self) -> bool:
        """Return whether the sanity check runs."""
        return self.trainer.state.stage is RunningStage.SANITY_CHECKING
