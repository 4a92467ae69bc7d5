"""Agree between ranks, by itself: threads stand for ranks, and exchange values through one table."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lt_core.checkpoint.save import SaveRequest, Saves
from lt_core.state.agreement import (
    SharedAlarm,
    SharedEnd,
    decided_by_rank_zero,
    listen,
    report,
    settle,
    shared_failure,
    stop_is_settled,
)
from lt_core.state.loop_state import LoopState
from lt_interface import CheckpointError, PlainCollectives, World

SIZE = 3


class Table:
    """Place where the threads meet; nobody waits longer than some seconds."""

    def __init__(self) -> None:
        self.gate = threading.Barrier(SIZE, timeout=20)
        self.given: dict[int, Any] = {}

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Return what all ranks give."""
        self.gate.wait()
        self.given[rank] = value
        self.gate.wait()
        found = [self.given[r] for r in range(SIZE)]
        self.gate.wait()
        return found


class Collectives(PlainCollectives):
    """Exchange of one thread."""

    def __init__(self, table: Table, rank: int) -> None:
        self.table, self.rank, self.before, self.calls = table, rank, 0, 0

    def broadcast_object(self, obj: Any, src: int = 0) -> Any:
        self.calls += 1
        return self.table.exchange(self.rank, obj)[src]

    def gather_object(self, obj: Any) -> list[Any]:
        self.calls += 1
        return self.table.exchange(self.rank, obj)

    def any(self, flag: bool) -> bool:
        self.calls += 1
        return any(self.table.exchange(self.rank, flag))

    def agree(self, bits: int) -> int:
        self.calls += 1
        found, self.before = self.before, 0
        for each in self.table.exchange(self.rank, bits):
            self.before |= each
        return found

    def settle(self) -> int:
        found, self.before = self.before, 0
        return found


class Trainer:
    """What agreement asks of a trainer."""

    def __init__(self, collectives: Any, world_size: int = SIZE) -> None:
        self.collectives, self.world_size, self._should_stop = collectives, world_size, False

    @property
    def should_stop(self) -> bool:
        return self._should_stop


def run_of(rank: int, collectives: Any, size: int = SIZE) -> Any:
    return SimpleNamespace(
        world=World(rank=rank, size=size),
        loop=LoopState(several=size > 1),
        trainer=Trainer(collectives, size),
        signals=SimpleNamespace(received=None, heeded=None),
        saves=Saves(None),
        collectives=collectives,
        feed=SimpleNamespace(ends=None),
        metrics=SimpleNamespace(train=SimpleNamespace(syncs=False, shares=None)),
    )


def on_ranks(job: Callable[[Any, int], Any]) -> list[Any]:
    """Run a job on threads that stand for ranks; raise the first error."""
    table, found = Table(), [None] * SIZE
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            found[rank] = job(run_of(rank, Collectives(table, rank)), rank)
        except BaseException as error:
            errors.append(error)
            table.gate.abort()

    threads = [threading.Thread(target=work, args=(r,), daemon=True) for r in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return found


def test_a_wish_is_heard_one_batch_later_by_all() -> None:
    """A rank that wants to look up does so with the others, after the next batch; nothing is heard without a wish."""

    def job(run: Any, rank: int) -> list[bool]:
        hear, heard = listen(run), []
        assert hear is not None
        for batch in range(5):
            if rank == 1 and batch == 2:
                run.loop.look_up()
            assert not run.loop.attention
            hear()
            heard.append(run.loop.attention)
            if run.loop.attention:
                run.loop.attention = False
                settle(run)
        return heard

    assert on_ranks(job) == [[False, False, False, True, False]] * SIZE


def test_the_last_batch_of_one_rank_is_that_of_all() -> None:
    """Whether a batch is any rank's last is known on all before it is over; a wish travels along, one batch late."""

    def job(run: Any, rank: int) -> list[Any]:
        run.feed.ends = ends = SharedEnd(run)
        hear, found = listen(run), []
        assert hear is not None
        for batch in range(4):
            ends.send(rank == 2 and batch == 3)
            if rank == 1:
                assert ends.heard() is (batch == 3)  # one rank alone may ask
            if rank == 0 and batch == 1:
                run.loop.look_up()
            hear()
            found.append((run.loop.attention, ends.heard()))
            if run.loop.attention:
                run.loop.attention = False
                settle(run)
        ends.send(False)
        return [*found, ends.heard()]

    assert on_ranks(job) == [[(False, False), (False, False), (True, False), (False, True), False]] * SIZE


def test_what_is_on_its_way_is_not_lost_where_wishes_are_settled() -> None:
    """An end that a rank sent and nobody read yet is known after settling; wishes of the same time are too."""

    def job(run: Any, rank: int) -> list[bool]:
        run.feed.ends = ends = SharedEnd(run)
        run.trainer._should_stop = rank == 1
        ends.send(rank == 0)
        settle(run)
        return [ends.heard(), run.loop.stop]

    assert on_ranks(job) == [[True, True]] * SIZE


def test_one_rank_looks_up_at_once() -> None:
    """With one rank a wish is attention, nothing is exchanged, and a stop is settled when it is asked for."""
    run = run_of(0, None, size=1)
    assert listen(run) is None
    run.loop.look_up()
    assert run.loop.attention
    settle(run)
    assert not stop_is_settled(run)
    run.trainer._should_stop = True
    assert stop_is_settled(run)
    assert decided_by_rank_zero(run, lambda: 5) == 5
    assert shared_failure(run, None) is None


@pytest.mark.parametrize("who", range(SIZE))
def test_a_stop_is_settled_and_withdrawn_together(who: int) -> None:
    """A stop of any rank is every rank's once it is settled, not before; without any it is nobody's."""

    def job(run: Any, rank: int) -> list[bool]:
        found = []
        run.trainer._should_stop = rank == who
        found.append(stop_is_settled(run))
        settle(run)
        found += [stop_is_settled(run), run.trainer.should_stop]
        run.trainer._should_stop = False
        settle(run)
        return [*found, stop_is_settled(run), run.trainer.should_stop]

    assert on_ranks(job) == [[False, True, True, False, False]] * SIZE


def test_signals_are_heeded_together() -> None:
    """Whatever signals which ranks received, all heed the same one, and no one before it is settled."""

    def job(run: Any, rank: int) -> list[Any]:
        run.signals.received = [None, signal.SIGTERM, signal.SIGINT][rank]
        before = run.signals.heeded
        settle(run)
        return [before, run.signals.heeded]

    assert on_ranks(job) == [[None, signal.SIGINT]] * SIZE


def test_a_signal_between_two_looks_waits_for_the_next() -> None:
    """A signal that comes after a rank's flags were sent is a wish for the next batch."""

    def job(run: Any, rank: int) -> list[Any]:
        settle(run)
        if rank == 2:
            run.signals.received = signal.SIGTERM
            run.loop.look_up()
        found = [run.signals.heeded]
        hear = listen(run)
        assert hear is not None
        hear()
        hear()
        assert run.loop.attention
        settle(run)
        return [*found, run.signals.heeded]

    assert on_ranks(job) == [[None, signal.SIGTERM]] * SIZE


def test_saves_are_joined() -> None:
    """What one rank asks for all write, in the same order and once, each with its own calls back."""

    def job(run: Any, rank: int) -> tuple[list[str], int]:
        queue = run.saves.queue
        if rank == 1:
            queue += [SaveRequest("own"), SaveRequest("both", saved=lambda: None)]
        if rank == 2:
            queue += [SaveRequest("both"), SaveRequest("both", weights_only=True)]
        settle(run)
        return sorted(f"{r.path} {r.weights_only}" for r in queue), sum(r.saved is not None for r in queue)

    wanted = ["both False", "both True", "own False"]
    assert on_ranks(job) == [(wanted, 0), (wanted, 1), (wanted, 0)]


def test_rank_zero_decides() -> None:
    """Rank 0 alone looks, and all ranks get its value or its error."""

    def job(run: Any, rank: int) -> tuple[Any, str]:
        def fail() -> None:
            raise CheckpointError(f"missing on rank {rank}")

        value = decided_by_rank_zero(run, lambda: f"seen by rank {rank}")
        with pytest.raises(CheckpointError) as caught:
            decided_by_rank_zero(run, fail)
        return value, str(caught.value)

    assert on_ranks(job) == [("seen by rank 0", "missing on rank 0")] * SIZE


@pytest.mark.parametrize("who", [None, 0, 2])
def test_a_failure_is_every_ranks(who: int | None) -> None:
    """A save that fails on one rank failed on all; one that worked everywhere failed nowhere."""

    def job(run: Any, rank: int) -> bool:
        error = shared_failure(run, OSError("disk full") if rank == who else None)
        assert error is None or isinstance(error, OSError)
        assert error is None or "disk full" in str(error)
        return error is not None

    assert on_ranks(job) == [who is not None] * SIZE


def test_values_to_reduce_of_one_rank_are_known_to_all() -> None:
    """Where one rank logs values to reduce, all know it once they settle, and do not forget; else all go on asking."""

    def job(run: Any, rank: int) -> list[bool | None]:
        store, known = run.metrics.train, []
        for store.syncs in (False, rank == 1, False):
            settle(run)
            known.append(store.shares)
        return known

    assert on_ranks(job) == [[None, True, True]] * SIZE


def test_a_rank_with_an_error_is_alone() -> None:
    """An error is reported once and nothing is exchanged after; a signal that all ranks heed leaves them together."""
    reported: list[str] = []
    reports = SimpleNamespace(report=lambda where, error: reported.append(f"{where}: {error}") or error)
    run = run_of(0, None)
    run.strategy, run.fn, run.progress = reports, "fit", SimpleNamespace(step=12)
    report(run, ValueError("broken"))
    assert run.loop.alone
    assert reported == ["fit, step 12: broken"]
    settle(run)  # would need the others
    assert isinstance(shared_failure(run, OSError()), OSError)
    run = run_of(0, None)
    run.signals.heeded, run.strategy = signal.SIGTERM, object()
    report(run, SystemExit(143))
    assert not run.loop.alone
    report(run, ValueError("in a hook"))
    assert run.loop.alone
    single = run_of(0, None, size=1)
    report(single, ValueError("broken"))
    assert not single.loop.alone


def test_an_alarm_rings_everywhere_by_the_first_ranks_clock() -> None:
    """All ranks ring at the same call, whatever their own clocks say, and most calls exchange nothing."""

    def job(run: Any, rank: int) -> tuple[int, int]:
        now = [0.0]
        alarm = SharedAlarm(lambda: (3.0 if rank == 0 else 1e9) - now[0], clock=lambda: now[0])
        calls = 0
        while not alarm.rings(run.trainer):
            calls += 1
            now[0] += 0.01
        return calls, run.collectives.calls

    first, *others = on_ranks(job)
    assert all(other == first for other in others)
    assert 299 <= first[0] <= 301
    assert first[1] < 30


def test_an_alarm_whose_time_is_up_rings_at_once() -> None:
    """A time that is over rings at the first call, and after a reset at the next one, on all ranks."""

    def job(run: Any, rank: int) -> list[bool]:
        left = [0.0 if rank == 0 else 5.0]
        alarm = SharedAlarm(lambda: left[0], clock=lambda: 0.0)
        found = [alarm.rings(run.trainer)]
        left[0] = 100.0
        found += [alarm.rings(run.trainer), alarm.rings(run.trainer)]
        left[0] = 0.0
        alarm.reset()
        return [*found, alarm.rings(run.trainer)]

    assert on_ranks(job) == [[True, False, False, True]] * SIZE


def test_what_was_heard_stays_known_where_wishes_are_settled() -> None:
    """Neither an end that was heard of, nor attention that is due, is forgotten by settling; a heeded signal is due."""

    def job(run: Any, rank: int) -> list[bool]:
        run.feed.ends = ends = SharedEnd(run)
        ends.send(rank == 1)
        found = [ends.heard(), run.loop.attention]
        settle(run)
        found += [run.loop.ends, run.loop.attention]
        run.loop.attention = True
        settle(run)
        found.append(run.loop.attention)
        run.loop.attention = False
        run.signals.received = signal.SIGTERM if rank == 2 else None
        settle(run)
        return [*found, run.loop.attention]

    assert on_ranks(job) == [[True, False, True, False, True, True]] * SIZE


def test_an_error_is_placed_at_the_users_function() -> None:
    """What is reported names call, step and the first function that the package called, whoever called the package."""
    reported: list[str] = []
    run = run_of(0, None, size=1)

    def hook() -> None:
        raise ValueError("broken")

    def beneath() -> None:
        hook()

    try:
        decided_by_rank_zero(run, beneath)
    except ValueError as error:
        inside = error
    try:
        hook()
    except ValueError as error:
        outside = error
    run = run_of(0, None)
    run.strategy = SimpleNamespace(report=lambda where, error: reported.append(where) or error)
    run.fn, run.progress = "fit", SimpleNamespace(step=12)
    assert report(run, inside) is inside
    assert report(run, outside) is outside
    assert reported == [
        "fit, step 12, in beneath",
        "fit, step 12, in test_an_error_is_placed_at_the_users_function",
    ]
