"""Log on several ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from stores import epoch_of, evaluation, log, training
from torch import Tensor

from lt_core.metrics.store import (
    EVAL_BATCH_END,
    EVAL_STEP,
    FORBIDDEN,
    TRAIN_EPOCH_END,
    MetricStore,
)
from lt_interface.errors import MisconfigurationException

# ---------------------------------------------------------------- several processes


class Ranks:
    """Join threads as ranks: each call waits for all of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.gate = threading.Barrier(size, timeout=20)
        self.given: dict[int, Any] = {}
        self.calls: list[str] = []


class Rank:
    """Collectives of one rank."""

    def __init__(self, ranks: Ranks, rank: int) -> None:
        self.ranks, self.rank, self.size = ranks, rank, ranks.size

    def _exchange(self, value: Any) -> list[Any]:
        self.ranks.gate.wait()
        self.ranks.given[self.rank] = value
        self.ranks.gate.wait()
        found = [self.ranks.given[r] for r in range(self.size)]
        self.ranks.gate.wait()
        return found

    def reduce(self, tensor: Tensor, op: str = "mean", group: str = "data") -> Tensor:
        if self.rank == 0:
            self.ranks.calls.append(op)
        stacked = torch.stack(self._exchange(tensor))
        return {"sum": stacked.sum, "min": stacked.amin, "max": stacked.amax}[op](0)

    def all_gather(self, tensor: Tensor, group: str = "data") -> Tensor:
        if self.rank == 0:
            self.ranks.calls.append("all_gather")
        return torch.stack(self._exchange(tensor))

    def broadcast_object(self, obj: Any, src: int = 0) -> Any:
        return self._exchange(obj)[src]

    def gather_object(self, obj: Any) -> list[Any]:
        return self._exchange(obj)

    def any(self, flag: bool) -> bool:
        return any(self._exchange(flag))


def on_ranks(
    size: int, job: Callable[[MetricStore, int], Any], make: Callable[..., MetricStore] = training
) -> list[Any]:
    """Run a job on threads that stand for ranks; an error is returned in place of the result."""
    ranks, results = Ranks(size), [None] * size

    def work(rank: int) -> None:
        try:
            results[rank] = job(make(collectives=Rank(ranks, rank), rank=rank, world_size=size), rank)
        except Exception as error:
            results[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=work, args=(r,)) for r in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [*results, ranks.calls]


def test_sync_dist_reduces_over_ranks() -> None:
    """The epoch's mean is that of all ranks' samples, sums and bounds are over all, in two collectives for all."""

    def job(store: MetricStore, rank: int) -> Any:
        for name in ("n", "m") if rank else ("m", "n"):  # the order of calls does not matter
            log(store, name, float(rank), on_step=False, on_epoch=True, sync_dist=True, batch_size=rank * 2 + 1)
        for op in ("sum", "min", "max"):
            log(store, op, float(rank + 1), on_step=False, on_epoch=True, sync_dist=True, reduce_fx=op)
        log(store, "own", float(rank), on_step=False, on_epoch=True)
        found = epoch_of(store)
        assert store.epoch_metrics()["n"] == found["n"]
        assert float(store.callback_metrics()["n"]) == found["n"]
        return found

    first, second, calls = on_ranks(2, job)
    expected = {"n": 0.75, "m": 0.75, "sum": 3.0, "min": 1.0, "max": 2.0}
    assert first == {**expected, "own": 0.0}
    assert second == {**expected, "own": 1.0}
    assert calls == ["max", "all_gather"]


def test_step_values_are_synced_together() -> None:
    """Values of training steps with sync_dist are the mean over ranks when they are taken."""

    def job(store: MetricStore, rank: int) -> Any:
        log(store, "x", float(rank), sync_dist=True)
        log(store, "y", float(rank))
        store.scope = FORBIDDEN
        return store.take_step()

    assert on_ranks(2, job)[:2] == [{"x": 0.5, "y": 0.0}, {"x": 0.5, "y": 1.0}]


def test_step_values_weigh_as_their_samples() -> None:
    """The mean over ranks of a step's value counts each sample once, by the batch's size or the given one."""

    def job(store: MetricStore, rank: int) -> Any:
        store.batch, store.size = torch.zeros(3 - 2 * rank), None
        log(store, "own", float(rank), sync_dist=True)
        log(store, "both", float(rank), on_step=True, on_epoch=True, sync_dist=True)
        log(store, "given", float(rank), sync_dist=True, batch_size=rank + 1)
        log(store, "array", np.float64(rank), sync_dist=True)
        log(store, "sum", float(rank), sync_dist=True, reduce_fx="sum", batch_size=5)
        store.scope = FORBIDDEN
        return store.take_step()

    first, second, calls = on_ranks(2, job)
    expected = {"own": 1 / 4, "both_step": 1 / 4, "given": 2 / 3, "array": 1 / 4, "sum": 1.0}
    assert first == second == pytest.approx(expected)
    assert calls == ["max", "all_gather"]


def test_step_values_of_batches_without_a_size_weigh_alike() -> None:
    """A batch that holds no tensor has no size: what it logs by step alone is the plain mean over ranks."""

    def job(store: MetricStore, rank: int) -> Any:
        store.batch, store.size = ["a text"] * (rank + 1), None
        log(store, "x", float(rank), sync_dist=True)
        store.scope = FORBIDDEN
        return store.take_step()

    assert on_ranks(2, job)[:2] == [{"x": 0.5}, {"x": 0.5}]


def test_what_a_rank_lacks_is_filled_in() -> None:
    """A name that one rank lacks has the others' value on every rank, in steps and epochs, each kind of reduction."""

    def job(store: MetricStore, rank: int) -> Any:
        for name in ("both", "extra") if rank else ("both",):
            for op in ("mean", "sum", "min", "max"):
                both = {"on_step": True, "on_epoch": True, "sync_dist": True, "reduce_fx": op}
                log(store, f"{name}_{op}", rank + 1.0, **both)
        store.scope = FORBIDDEN
        return store.take_step(), epoch_of(store), store.epoch_metrics()

    first, second, calls = on_ranks(2, job)
    assert first == second
    wanted = {"both_mean": 1.5, "both_sum": 3.0, "both_min": 1.0, "both_max": 2.0}
    wanted |= {f"extra_{op}": 2.0 for op in ("mean", "sum", "min", "max")}
    assert first[0] == {f"{name}_step": value for name, value in wanted.items()}
    assert first[1] == first[2] == {f"{name}_epoch": value for name, value in wanted.items()}
    assert calls == 2 * ["max", "all_gather"]  # and one object each, of who has what


def test_ranks_that_differ_are_named() -> None:
    """What nothing can stand for on a rank that lacks it is one error on every rank, with names and ranks."""

    def job(store: MetricStore, rank: int) -> Any:
        log(store, "way", 1.0, on_step=False, on_epoch=True, sync_dist=True, reduce_fx="max" if rank else "min")
        return epoch_of(store)

    def grouped(store: MetricStore, rank: int) -> Any:
        if rank:
            log(store, "way", 1.0, on_step=False, on_epoch=True, sync_dist=True, sync_dist_group="data")
        return epoch_of(store)

    for kind, words in ((job, "(max) not on ranks [0]"), (grouped, "(mean) not on ranks [0]")):
        for error in on_ranks(2, kind)[:2]:
            assert isinstance(error, MisconfigurationException)
            assert "way" in str(error)
            assert words in str(error)


def test_rank_zero_only() -> None:
    """With rank_zero_only the other ranks keep nothing and nothing is exchanged for it."""

    def job(store: MetricStore, rank: int) -> Any:
        log(store, "x", float(rank), on_step=False, on_epoch=True, sync_dist=True, rank_zero_only=True)
        return epoch_of(store)

    assert on_ranks(2, job)[:2] == [{"x": 0.0}, {}]


def test_evaluation_ranks_may_have_unequal_batches() -> None:
    """Ranks with different numbers of evaluation batches neither wait for each other by step nor weigh alike."""

    def job(store: MetricStore, rank: int) -> Any:
        for i in range(rank + 1):
            store.batch, store.size = torch.zeros(2), None
            log(store, "x", float(rank), on_step=True, on_epoch=True, sync_dist=True)
            store.scope = EVAL_BATCH_END
            assert store.take_step() == {"x_step": float(rank)}, i
            store.scope = EVAL_STEP
        return epoch_of(store)

    found = on_ranks(2, job, evaluation)
    assert found[0] == found[1] == {"x_epoch": pytest.approx(2 / 3)}


def test_a_rank_without_values_takes_part() -> None:
    """A rank that had no evaluation batch changes no value of the others, knows them, and does not hang."""

    def job(store: MetricStore, rank: int) -> Any:
        if rank == 0:
            for op in ("mean", "sum", "min", "max"):
                log(store, op, 3.0, on_epoch=True, sync_dist=True, reduce_fx=op)
        return epoch_of(store)

    first, second, _ = on_ranks(2, job, evaluation)
    assert first == second == dict.fromkeys(("mean", "sum", "min", "max"), 3.0)


class SharedSum:
    """Metric object that adds up over all ranks when it is computed, as those of torchmetrics do."""

    def __init__(self, collectives: Any) -> None:
        self.collectives, self.total, self.computed = collectives, 0.0, 0

    def update(self, value: float) -> None:
        self.total += value

    def compute(self) -> Tensor:
        self.computed += 1
        return self.collectives.reduce(torch.tensor(self.total), "sum")

    def reset(self) -> None:
        self.total = 0.0


def test_reading_never_communicates() -> None:
    """One rank alone may read all metrics while a metric object is unread: it gets what was exchanged before."""

    def job(store: MetricStore, rank: int) -> Any:
        metric = SharedSum(store.collectives)
        metric.update(rank + 1.0)
        log(store, "sum", metric, on_step=True, on_epoch=True, prog_bar=True)
        reads = [store.callback_metrics, store.progress_bar_metrics, store.state_dict]
        if rank == 0:
            assert "sum_step" not in store.callback_metrics()
            assert store.progress_bar_metrics() == {}
            assert store.state_dict()["slots"][0]["last"] is None
        assert metric.computed == 0
        store.scope = FORBIDDEN
        assert store.take_step() == {"sum_step": 3.0}
        if rank == 0:
            assert all(read() for read in reads)
            assert float(store.callback_metrics()["sum_step"]) == 3.0
        store.scope, store.batch = TRAIN_EPOCH_END, None
        store.sync()
        if rank == 0:
            assert float(store.callback_metrics()["sum_epoch"]) == 3.0
        found = store.take_epoch()
        assert metric.computed == 2
        return found

    assert on_ranks(2, job)[:2] == [{"sum_epoch": 3.0}] * 2


def test_a_metric_object_of_one_rank_is_named() -> None:
    """A metric object that one rank alone logs is an error on every rank, not a hang."""

    def job(store: MetricStore, rank: int) -> Any:
        if rank == 0:
            log(store, "sum", SharedSum(store.collectives), on_epoch=True)
        return epoch_of(store)

    for error in on_ranks(2, job, evaluation)[:2]:
        assert isinstance(error, MisconfigurationException)
        assert "sum (metric object)" in str(error)


# ---------------------------------------------------------------- an epoch's part up to now


def so_far(store: MetricStore, *watched: str) -> dict[str, float]:
    """Look as a validation inside the epoch does."""
    return {name: float(value) for name, (_, value) in store.so_far(set(watched)).items()}


def test_a_part_of_an_epoch_is_over_all_ranks() -> None:
    """Inside the epoch a value is that of all ranks so far, and its end counts what only some log after the look."""

    def job(store: MetricStore, rank: int) -> Any:
        for op in ("mean", "sum", "max"):
            log(store, op, rank + 1.0, on_step=False, on_epoch=True, sync_dist=True, reduce_fx=op, batch_size=1)
        log(store, "own", float(rank), on_step=False, on_epoch=True, batch_size=1)
        first = so_far(store)
        if rank == 0:
            log(store, "mean", 9.0, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        return first, epoch_of(store)

    first, second, _ = on_ranks(2, job)
    assert first == (
        {"mean": 1.5, "sum": 3.0, "max": 2.0, "own": 0.0},
        {"mean": 4.0, "sum": 3.0, "max": 2.0, "own": 0.0},
    )
    assert second == ({**first[0], "own": 1.0}, {**first[1], "own": 1.0})


def test_names_that_only_some_ranks_have_so_far_are_theirs() -> None:
    """Ranks need not have logged the same by the time of a look: all see the value of those that have."""

    def job(store: MetricStore, rank: int) -> Any:
        log(store, "own", 1.0, on_step=False, on_epoch=True)
        log(store, "both", float(rank), on_step=False, on_epoch=True, sync_dist=True)
        if rank:
            log(store, "late", 2.0, on_step=False, on_epoch=True, sync_dist=True)
        early = so_far(store)
        if not rank:
            log(store, "late", 4.0, on_step=False, on_epoch=True, sync_dist=True)
        return early, epoch_of(store)

    assert (
        on_ranks(2, job)[:2] == [({"own": 1.0, "both": 0.5, "late": 2.0}, {"own": 1.0, "both": 0.5, "late": 3.0})] * 2
    )


def test_shared_objects_are_computed_early_for_who_asks() -> None:
    """A metric object that exchanges values is computed inside the epoch on all ranks if watched, else on none."""

    def job(store: MetricStore, rank: int) -> Any:
        metrics = SharedSum(store.collectives), SharedSum(store.collectives)
        for name, metric in zip(("a", "b"), metrics, strict=True):
            metric.update(rank + 1.0)
            log(store, name, metric, on_step=False, on_epoch=True)
        early = so_far(store, "a")
        reads = set(store.callback_metrics())
        metrics[0].update(1.0)
        return early, reads, epoch_of(store), [metric.computed for metric in metrics]

    assert on_ranks(2, job)[:2] == [({"a": 3.0}, set(), {"a": 5.0, "b": 3.0}, [2, 1])] * 2


def test_values_that_ranks_do_not_share_are_one_warning() -> None:
    """Nine validation metrics that each rank reports alone are one warning, which names the first."""
    store = evaluation(world_size=2, collectives=Rank(Ranks(2), 0))
    with pytest.warns(UserWarning, match=r"self.log\('m0'\): each process reports .* and of all that") as told:
        log(store, "m0", 1.0)
    for number in range(1, 9):  # a further warning would be an error
        log(store, f"m{number}", 1.0)
    assert len(told) == 1
