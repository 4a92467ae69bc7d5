"""What the running loops know besides the counters of progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lt_core.state.collecting import Collecting

__all__ = ["EvaluationState", "FitState", "LoopState", "Pace", "PredictState"]


def _no_engine(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("LightningModule.manual_backward: there is no engine yet. Call it from on_fit_start on.")


@dataclass
class Pace:
    """Seconds of the loop over training batches in this process; a checkpoint does not keep them.

    Attributes:
        whole: All of them, without what is due at boundaries.
        fetching: Those spent waiting for the next batch.
        moving: Those spent on transfer hooks and on bringing batches to the device.
        stager: What moves batches while they are fetched, if anything does; with the ``seconds`` that it took.
    """

    whole: float = 0.0
    fetching: float = 0.0
    moving: float = 0.0
    stager: Any = None
    _begun: float | None = None

    def begin(self) -> float:
        """Begin to measure, and return the time."""
        self._begun = time.perf_counter()
        return self._begun

    def end(self) -> None:
        """Count what was measured since the beginning, once, whatever has ended it."""
        if self._begun is not None:
            self.whole, self._begun = self.whole + time.perf_counter() - self._begun, None
        if self.stager is not None:
            self.fetching, self.moving = self.fetching - self.stager.seconds, self.moving + self.stager.seconds
            self.stager.seconds = 0.0


@dataclass
class FitState:
    """State of the training loop; a checkpoint keeps what of the running epoch is done already.

    Attributes:
        step: The step, built for what users may change as it was at the last look.
        close: What steps with an open window's gradients, given its last batch's index, where no further one comes.
        manual_backward: What ``module.manual_backward`` runs, put together with the engine.
        seen: What users may change, as it was at the last look.
        engine_inputs: What the engine was built for.
        logged_step: The step whose values were logged last.
        first_step: How many steps were made when the running epoch began.
        schedulers_done: Whether the schedulers of interval ``"epoch"`` stepped in this epoch.
        validated_batch: After how many batches of this epoch was validated last; -1 for not yet.
        validated_at: When the last validation began, in seconds of the monotonic clock.
        samples_seen: How many samples of this epoch are counted in the progress.
        pending: What a run that is stopped now begins with when it is resumed, as of `lt_core.checkpoint.standing`.
        before_validation: What the running validation began with; a run that is stopped inside it repeats it.
        stepped: Whether an optimizer stepped since the loop last looked, under manual optimization.
        skipped: Whether no optimizer stepped in the last batch, where a scheduler is to step with it.
        settled: After how many batches of this epoch all that was due was last done; -1 for not yet.
        left: After how many batches of this epoch a stop last left it open, its end hooks done; -1 for not yet.
        kept: Metrics and metric objects of an epoch that was left open, as they were before its end hooks.
        pace: Where the loop over batches spent its time so far.
    """

    step: Callable[[Any, int], Any] | None = None
    close: Callable[[int], None] | None = None
    manual_backward: Callable[..., None] = _no_engine
    seen: tuple[Any, ...] = ()
    engine_inputs: tuple[Any, ...] = ()
    logged_step: int = 0
    first_step: int = 0
    schedulers_done: bool = False
    validated_batch: int = -1
    validated_at: float = 0.0
    samples_seen: int = 0
    pending: str | None = None
    before_validation: dict[str, Any] | None = None
    stepped: bool = False
    skipped: bool = False
    settled: int = -1
    left: int = -1
    kept: dict[str, Any] | None = None
    pace: Pace = field(default_factory=Pace)

    def state_dict(self) -> dict[str, Any]:
        """Return what of this epoch is done already."""
        done = {"validated": self.validated_batch, "settled": self.settled, "left": self.left}
        return {"epoch_done": self.schedulers_done, "first_step": self.first_step, **done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; what an older file lacks is not yet done."""
        self.schedulers_done = state.get("epoch_done", False)
        self.validated_batch, self.left = state.get("validated", -1), state.get("left", -1)
        self.settled = state.get("settled", self.validated_batch)
        self.first_step = state.get("first_step", 0)

    def begin_epoch(self, step: int) -> None:
        """Forget what belongs to the epoch before; ``step`` steps were made."""
        self.first_step = step
        self.validated_batch = self.settled = self.left = -1
        self.samples_seen, self.schedulers_done, self.kept = 0, False, None


@dataclass
class EvaluationState:
    """State of the evaluation loops.

    Attributes:
        seen_batches: How many batches each loader gave so far: the x-axis of what is logged by step there.
    """

    seen_batches: dict[str, int] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the counts."""
        return {"seen_batches": dict(self.seen_batches)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; other keys are left alone."""
        self.seen_batches = dict(state.get("seen_batches", {}))


@dataclass
class PredictState:
    """State of the predict loop, for each loader; empty but where somebody wants it, and while the loop runs.

    Attributes:
        predictions: What predict_step returned, on the CPU.
        indices: Dataset indices of each batch.
    """

    predictions: list[list[Any]] = field(default_factory=list)
    indices: list[list[list[int]]] = field(default_factory=list)


@dataclass
class LoopState:
    """State of a run's loops; a checkpoint keeps where it was written and what is pending there.

    Attributes:
        attention: Whether the loop looks up before its next due batch, for a stop, a save request or a signal.
        several: Whether there are other ranks, so that `look_up` is a wish that they must hear of first.
        wish: Whether this rank wants the loop to look up, and the others may not know of it yet.
        stop: Whether the ranks, where they are several, agreed to stop.
        ends: Whether any rank, where they are several and sizes are unknown, has no batch after the running one.
        alone: Whether the other ranks cannot be reached any more, since this one had an error.
        at_boundary: Whether the loop stands where a checkpoint is exact.
        broke_in: After an error, the scope of ``self.log`` in the training loop where it was raised.
        collecting: Python's garbage collector, where the run controls it.
        warned: The topics that were warned of once.
    """

    attention: bool = False
    several: bool = False
    wish: bool = False
    stop: bool = False
    ends: bool = False
    alone: bool = False
    at_boundary: bool = True
    broke_in: int | None = None
    collecting: Collecting | None = None
    warned: set[str] = field(default_factory=set)
    fit: FitState = field(default_factory=FitState)
    evaluation: EvaluationState = field(default_factory=EvaluationState)
    predict: PredictState = field(default_factory=PredictState)

    def state_dict(self) -> dict[str, Any]:
        """Return whether a checkpoint written now is exact, and what a run that resumes from it begins with."""
        return {"exact": self.at_boundary, "pending": self.fit.pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what is pending; the loop itself stands at a boundary when a run begins."""
        self.fit.pending = state.get("pending")

    def look_up(self) -> None:
        """Make the loop look up before its next due batch; with several ranks as soon as all know of it."""
        if self.several:
            self.wish = True
        else:
            self.attention = True

    def first_time(self, topic: str) -> bool:
        """Return whether this is the first call for a topic."""
        new = topic not in self.warned
        self.warned.add(topic)
        return new
