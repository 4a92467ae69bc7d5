"""Let all ranks decide alike: by what rank 0 saw, what any rank wishes, or rank 0's clock.

A rank that stops, saves or leaves an epoch while its peers go on hangs the job. So nothing that may differ by rank
changes what the loop does next before all ranks know of it. There are two ways.

What is decided at a boundary (a monitored value, a found file, a failed save, a clock) is agreed there: all ranks stand
at the same place and wait for one another, by `from_rank_zero`, `decided_by_rank_zero` and `shared_failure`.

What may arise at any step on one rank (a stop or a save asked for in a hook, a signal) is a wish. With one rank the
loop looks up at once. With several a rank only notes it, and says so with the flags that `listen` exchanges after each
batch without waiting; one batch later all ranks look up, and `settle` finds out what for. It also runs before whatever
else depends on wishes: validation, saves, an epoch's end; so no checkpoint is written while one is on its way.

Where nobody knows an epoch's length, the ranks' data may end at different batches. Then each looks one batch ahead, and
the flags go out before each batch, with one more: whether it is this rank's last. It is all ranks' last if one says so.

An error of one rank is agreed with nobody, since its peers may wait in any collective. It is reported through the
strategy, which ends their waits by an error that names this rank. From then on each of them is alone, and what it still
does, such as saving, exchanges nothing. A run that went well ends with a barrier, so that an error in the last hooks of
one rank is one of all.
"""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from lt_core.state.signals import raise_signal
from lt_interface import ReportsFailures
from lt_interface.errors import LTError

if TYPE_CHECKING:
    from lt_core.state.loop_state import LoopState
    from lt_core.state.run import Run
    from lt_core.trainer import Trainer

__all__ = [
    "SharedAlarm",
    "SharedEnd",
    "anywhere",
    "decided_by_rank_zero",
    "from_rank_zero",
    "heard",
    "heed",
    "listen",
    "refusal",
    "report",
    "settle",
    "shared_failure",
    "stop_is_settled",
]

T = TypeVar("T")
_WISH, _STOP, _SAVE, _INTERRUPT, _TERMINATE, _BATCH, _END, _SYNC = 1, 2, 4, 8, 16, 32, 64, 128
_DONE: Any = object()
_OURS = ("lt_core.", "lt_interface.")
_SIGNALS = {signal.SIGINT: _INTERRUPT, signal.SIGTERM: _TERMINATE}


def from_rank_zero(trainer: Trainer, value: T) -> T:
    """Return rank 0's value on every rank."""
    return trainer.collectives.broadcast_object(value)


def decided_by_rank_zero(run: Run, decide: Callable[[], T]) -> T:
    """Return on every rank what rank 0's call returns, or raise what it raises; the others do not call."""
    if run.world.size == 1:
        return decide()
    value: Any = None
    error: Exception | None = None
    if run.world.is_global_zero:
        try:
            value = decide()
        except Exception as caught:
            error = caught
    value, error = run.collectives.broadcast_object((value, error))
    if error is not None:
        raise error
    decided: T = value
    return decided


def anywhere(run: Run, flag: bool) -> bool:
    """Return whether a flag is set on any rank; every rank calls it at the same place."""
    return flag if run.world.size == 1 else run.collectives.any(flag)


def shared_failure(run: Run, error: Exception | None) -> Exception | None:
    """Return a failure on every rank, if any rank had one; each calls it with its own, or with None.

    That of another rank is of the same kind here: an OSError, or an error of this package.
    """
    if run.world.size == 1 or run.loop.alone:
        return error
    if not run.collectives.any(error is not None):
        return None
    travels = error is None or isinstance(error, LTError) or type(error).__module__ == "builtins"
    errors = run.collectives.gather_object(error if travels else OSError(f"{type(error).__name__}: {error}"))
    return error or next(filter(None, errors))


def listen(run: Run) -> Callable[[], None] | None:
    """Return what the loop calls after each batch to hear of the ranks' wishes, or None where there is one rank."""
    if run.world.size == 1:
        return None
    loop, exchange = run.loop, run.collectives
    if run.feed.ends is not None:
        return lambda: _note(loop, exchange.settle())
    return lambda: _note(loop, exchange.agree(_WISH if loop.wish else 0))


def _note(loop: LoopState, seen: int) -> None:
    """Note what was heard between two batches."""
    loop.attention = loop.attention or bool(seen & _WISH)
    loop.ends = loop.ends or bool(seen & _END)


class SharedEnd:
    """Agreement on the last batch of an epoch whose length nobody knows.

    Before each batch a rank sends, without waiting, whether it is its last. Whoever asks waits for the answers, and
    exchanges nothing: so one rank alone may ask.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def send(self, last: bool) -> None:
        """Send whether the batch that comes next is this rank's last, and whether it has a wish."""
        loop = self.run.loop
        seen = self.run.collectives.agree((_END if last else 0) | (_WISH if loop.wish else 0))
        loop.ends = False
        _note(loop, seen)

    def heard(self) -> bool:
        """Return whether the batch that was sent about last is the last one of any rank."""
        _note(self.run.loop, self.run.collectives.settle())
        return self.run.loop.ends


def settle(run: Run) -> None:
    """Make the wishes of each rank those of all; every rank calls it at the same place.

    Afterwards ``trainer.should_stop``, the requested checkpoints and the signal to heed are the same on every rank.
    """
    loop, trainer, watch, saves, store = run.loop, run.trainer, run.signals, run.saves, run.metrics.train
    if run.world.size == 1 or loop.alone:
        return
    loop.wish = False  # before anything is read: a signal that comes now is a wish for the next time
    bits = (_STOP if trainer._should_stop else 0) | (_SAVE if saves.queue else 0)
    bits |= 0 if watch is None else _SIGNALS.get(watch.received or 0, 0)  # type: ignore[call-overload]
    bits |= _SYNC if store.syncs else 0
    # Two calls: the first returns what is still on its way, the second what was sent just now.
    before = run.collectives.agree(bits)
    loop.ends = loop.ends or bool(before & _END)
    seen = before | run.collectives.settle()
    store.shares = bool(seen & _SYNC) or store.shares
    trainer._should_stop = bool(seen & _STOP)
    loop.stop = trainer.should_stop
    if watch is not None:
        watch.heeded = next((number for number, bit in _SIGNALS.items() if seen & bit), None)
        loop.attention = loop.attention or watch.heeded is not None
    if seen & _SAVE:
        for theirs in run.collectives.gather_object([(r.path, r.weights_only) for r in saves.queue]):
            saves.join(theirs)


def stop_is_settled(run: Run) -> bool:
    """Return whether a stop was asked for that every rank knows of."""
    return run.trainer.should_stop if run.world.size == 1 else run.loop.stop


def report(run: Run, error: BaseException) -> BaseException:
    """Report an error to the other ranks and exchange nothing any more; return the error that ends this rank.

    Nothing is reported of a signal that all ranks heed at this place.
    """
    heeded = run.signals is not None and run.signals.heeded is not None
    if run.world.size == 1 or (heeded and isinstance(error, KeyboardInterrupt | SystemExit)):
        return error
    run.loop.alone = True
    return run.strategy.report(_place(run, error), error) if isinstance(run.strategy, ReportsFailures) else error


def _place(run: Run, error: BaseException) -> str:
    """Return the call, the step and the first function that this package called and that is not its own."""
    names = [(f.f_globals.get("__name__", ""), f.f_code.co_name) for f, _ in traceback.walk_tb(error.__traceback__)]
    ours = [name.startswith(_OURS) for name, _ in names]
    if True in ours:
        names = names[ours.index(True) :]
    theirs = (name for module, name in names if not module.startswith(_OURS) and not name.startswith("<"))
    return ", ".join([str(run.fn), f"step {run.progress.step}", *(f"in {name}" for name in [*theirs][:1])])


def refusal(run: Run, hook: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """Return the module's ``on_train_batch_start`` so that its -1 on any rank is one on all, before the batch's step.

    The ranks wait for one another here: one batch later the batch that one of them refused would be trained.
    """
    if run.world.size == 1 or hook is None:
        return hook
    collectives = run.collectives
    return lambda batch, index: -1 if collectives.any(hook(batch, index) == -1) else None


def heard(run: Run, batches: Iterable[T]) -> Iterator[T]:
    """Yield the batches of an evaluation; after one of them raise a signal, on all ranks in the same round.

    Ranks may have other numbers of batches: those that are done listen for as long as any has one.
    """
    loop, agree = run.loop, run.collectives.agree
    if run.world.size == 1:
        for batch in batches:
            yield batch
            if loop.attention:
                raise_signal(run)
        return
    rest, known = iter(batches), False  # whether the answer is about a round of this loop
    while True:
        mine: Any = next(rest, _DONE)
        if mine is not _DONE:
            yield mine
        seen = agree((0 if mine is _DONE else _BATCH) | (_WISH if loop.wish else 0))
        if seen & _WISH:
            heed(run)
            known = False
        elif known and not seen & _BATCH:
            return
        else:
            known = True


def heed(run: Run) -> None:
    """Make the wishes of each rank those of all, and raise what a signal to any of them means.

    Raises:
        KeyboardInterrupt: For SIGINT.
        SystemExit: With 143, for SIGTERM.
    """
    settle(run)
    raise_signal(run)


class SharedAlarm:
    """Alarm that rings on every rank at the same batch, by rank 0's clock.

    With several ranks an exchange at every batch would cost more than the batch. So rank 0
    sends with each answer how many batches may pass before the next question: about a
    second's worth, and never past the time it rings at.

    Args:
        seconds_left: Returns how many seconds are left, on this rank's clock.
        clock: Returns seconds; for tests.
    """

    def __init__(self, seconds_left: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds_left = seconds_left
        self._clock = clock
        self._skip = 0
        self._asked = 0
        self._since = clock()

    def reset(self) -> None:
        """Ask again at the next call; every rank must reset at the same place."""
        self._skip = 0

    def rings(self, trainer: Trainer) -> bool:
        """Return whether the time is up; call it once a batch on every rank."""
        if trainer.world_size == 1:
            return self._seconds_left() <= 0
        self._asked += 1
        if self._skip > 0:
            self._skip -= 1
            return False
        left, self._skip = from_rank_zero(trainer, (self._seconds_left(), self._batches_to_skip()))
        return left <= 0

    def _batches_to_skip(self) -> int:
        """Return how many batches may pass; few at first, since the time before the first batch measures none."""
        now, asked = self._clock(), max(self._asked, 1)
        batch_seconds = max((now - self._since) / asked, 1e-6)
        self._since, self._asked = now, 0
        return max(min(int(min(1.0, max(self._seconds_left(), 0.0)) / batch_seconds) - 1, 2 * asked), 0)
