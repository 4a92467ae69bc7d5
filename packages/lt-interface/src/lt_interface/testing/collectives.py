"""Conformance suite of the exchange between ranks, on forked ranks."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from lt_interface.strategy import Collectives
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.suite import Conformance

__all__ = ["CollectivesConformance"]

FORMATS = ["float32", "float64", "float16", "bfloat16", "uint8", "int16", "int32", "int64", "bool"]
Check = Callable[[Any, int, int], Any]


class CollectivesConformance(Conformance, suite=True):
    """Tests of a strategy's collectives on real ranks; ``make`` is called in each of them.

    Attributes:
        sizes: With how many ranks it is tested.
        timeout: Seconds after which ranks that are not done fail a test.

    Example:
        ::

            class TestRingCollectives(CollectivesConformance):
                def make(self):
                    return RingCollectives(os.environ["RANK"], os.environ["MASTER_ADDR"])
    """

    sizes: ClassVar[tuple[int, ...]] = (1, 2)
    timeout: ClassVar[float] = 60.0

    def on_ranks(self, check: Check) -> None:
        """Run a check on each number of ranks.

        Args:
            check: Called in each rank with its collectives, its number and the number of ranks. Its results must be
                the same on all ranks.

        Raises:
            AssertionError: If it fails in a rank, or the results differ.
        """
        for size in self.sizes:
            results = run_ranks(lambda rank, n=size: check(self.make(), rank, n), size, self.timeout)  # type: ignore[misc]
            assert all(result == results[0] for result in results), f"other results on {size} ranks: {results}"

    def test_fills_the_protocol(self) -> None:
        """It has every method."""

        def check(exchange: Any, rank: int, size: int) -> None:
            assert isinstance(exchange, Collectives)

        self.on_ranks(check)

    def test_reduces(self) -> None:
        """Each operation gives its result in each format, the same on every rank, and leaves its input as it was."""
        import torch

        def check(exchange: Any, rank: int, size: int) -> list[Any]:
            found = []
            for name in FORMATS:
                dtype = getattr(torch, name)
                mine = torch.tensor([[rank, 1, 0], [2 * rank, 0, 3]]).to(dtype)
                every = torch.stack([torch.tensor([[r, 1, 0], [2 * r, 0, 3]]).to(dtype) for r in range(size)])
                for op, expected in _reductions(every).items():
                    before = mine.clone()
                    result = exchange.reduce(mine, op)
                    assert torch.equal(mine, before), f"reduce({op}) of {name}: it changed its input"
                    assert result.shape == mine.shape, f"reduce({op}) of {name}: another shape"
                    rounding = 2**-7 if op == "mean" else 0.0
                    assert torch.allclose(result.double(), expected, rounding, 0.0), f"reduce({op}) of {name}: {result}"
                    found.append((str(result.dtype), result.double().tolist()))
            turned = torch.arange(6.0).reshape(2, 3).t() + rank
            assert torch.equal(exchange.reduce(turned, "max"), turned - rank + size - 1)
            assert float(exchange.reduce(torch.tensor(1.0 + rank), "sum")) == size * (size + 1) / 2
            return found

        self.on_ranks(check)

    def test_gathers(self) -> None:
        """The ranks' tensors come stacked in the order of ranks; of one rank the tensor itself."""
        import torch

        def check(exchange: Any, rank: int, size: int) -> None:
            for name in FORMATS:
                for base in (torch.tensor(1), torch.tensor([[0, 1, 1], [1, 0, 1]]), torch.arange(6).reshape(2, 3).t()):
                    mine = (base + rank).to(getattr(torch, name))
                    every = torch.stack([(base + r).to(mine.dtype) for r in range(size)])
                    result = exchange.all_gather(mine)
                    assert result.dtype == mine.dtype
                    assert torch.equal(result, every if size > 1 else mine), f"all_gather of {name}: {result}"

        self.on_ranks(check)

    def test_gathered_gradients_flow(self) -> None:
        """Each rank gets the gradients that all ranks have for its part; without being asked for none flow."""
        import torch

        def check(exchange: Any, rank: int, size: int) -> None:
            value = torch.ones(2, requires_grad=True)
            gathered = exchange.all_gather(value * 3, sync_grads=True).reshape(size, 2)
            (gathered * torch.arange(1.0, size + 1)[:, None] * (rank + 1)).sum().backward()
            assert value.grad is not None
            assert value.grad.tolist() == [3.0 * (rank + 1) * size * (size + 1) / 2] * 2
            assert size == 1 or not exchange.all_gather(value).requires_grad

        self.on_ranks(check)

    def test_knows_the_group_of_all(self) -> None:
        """The group "all" is every rank, whatever those are that receive different samples."""
        import torch

        def check(exchange: Any, rank: int, size: int) -> None:
            assert int(exchange.reduce(torch.tensor(rank), "sum", "all")) == size * (size - 1) // 2
            assert exchange.all_gather(torch.tensor(rank), "all").reshape(-1).tolist() == list(range(size))

        self.on_ranks(check)

    def test_broadcasts_objects(self) -> None:
        """Each rank can send any plain object."""

        def check(exchange: Any, rank: int, size: int) -> list[Any]:
            found = [exchange.broadcast_object({"of": rank, "a": (1, None, "x" * 5000)}, src) for src in range(size)]
            assert [x["of"] for x in found] == list(range(size))
            assert exchange.broadcast_object({"of": rank})["of"] == 0
            return found

        self.on_ranks(check)

    def test_gathers_objects(self) -> None:
        """Every rank gets each rank's object, in the order of ranks, whatever their sizes."""

        def check(exchange: Any, rank: int, size: int) -> list[Any]:
            mine = {"of": rank, "a": (1, None, "x" * 5000 * rank)}
            found: list[Any] = exchange.gather_object(mine)
            assert found == [{"of": r, "a": (1, None, "x" * 5000 * r)} for r in range(size)], f"gathered {found}"
            return found

        self.on_ranks(check)

    def test_any(self) -> None:
        """A flag of one rank is seen on all; without one nothing is."""

        def check(exchange: Any, rank: int, size: int) -> None:
            for setter in range(size):
                assert exchange.any(rank == setter) is True
            assert exchange.any(False) is False

        self.on_ranks(check)

    def test_barrier_waits(self) -> None:
        """No rank passes a barrier before all have come."""
        here = multiprocessing.get_context("fork").Event()

        def check(exchange: Any, rank: int, size: int) -> None:
            here.clear()
            exchange.barrier("before", 30.0)
            if rank == size - 1:
                time.sleep(0.2)
                here.set()
            exchange.barrier("after", 30.0)
            assert here.is_set(), "a rank passed a barrier to which another had not come"

        self.on_ranks(check)

    def test_late_rank_is_an_error(self) -> None:
        """A barrier to which a rank does not come is a TimeoutError after its time, with the barrier's name."""
        waited = multiprocessing.get_context("fork").Event()

        def check(exchange: Any, rank: int, size: int) -> None:
            if size == 1:
                return
            if rank == 1:
                assert waited.wait(self.timeout / 2), "rank 0 waits longer than the barrier's timeout"
                return
            with pytest.raises(TimeoutError, match="the files"):
                exchange.barrier("the files", 0.5)
            waited.set()

        self.on_ranks(check)

    def test_agrees_one_call_late(self) -> None:
        """The flags of all ranks come back one call later, at once with one rank; each call has flags of its own."""

        def check(exchange: Any, rank: int, size: int) -> list[int]:
            given = [1 << rank, 0, 1 << 30 if rank == size - 1 else 0, 4, 0, 0]
            every = [(1 << size) - 1, 0, 1 << 30, 4, 0, 0]
            found = []
            for bits in given:
                if rank == 0:
                    exchange.broadcast_object("other traffic between the calls")
                found.append(exchange.agree(bits))
                if rank > 0:
                    exchange.broadcast_object(None)
            assert found == (every if size == 1 else [0, *every[:-1]]), f"agree gave {found} for {every}"
            return found

        self.on_ranks(check)

    def test_settles_what_was_sent(self) -> None:
        """The flags sent last can be read on one rank or on all, once, and nothing is sent by it."""

        def check(exchange: Any, rank: int, size: int) -> list[int]:
            every = (1 << size) - 1 if size > 1 else 0
            assert exchange.settle() == 0, "settle gave flags that nobody sent"
            exchange.agree(1 << rank)
            found = [exchange.settle(), exchange.settle(), exchange.agree(1 << rank) if size > 1 else 0]
            found.append(exchange.settle() if rank == 0 else exchange.agree(0) if size > 1 else 0)
            assert found == [every, 0, 0, every], f"settle gave {found}"
            if rank == 0:
                exchange.agree(0)
            exchange.barrier("the end", 30.0)
            return found

        self.on_ranks(check)

    def test_agreeing_waits_for_nobody(self) -> None:
        """A rank sends its flags and goes on, though the others have not come yet."""
        went_on = multiprocessing.get_context("fork").Event()

        def check(exchange: Any, rank: int, size: int) -> None:
            went_on.clear()
            exchange.barrier("before", 30.0)
            if rank > 0:
                assert went_on.wait(self.timeout / 4), "agree waits for the other ranks"
            exchange.agree(1)
            went_on.set()
            assert exchange.agree(0) == (1 if size > 1 else 0)

        self.on_ranks(check)


def _reductions(every: Any) -> dict[str, Any]:
    """Return each operation's result over the first dimension, as 64-bit numbers."""
    values = every.double()
    return {"mean": values.mean(0), "sum": values.sum(0), "min": values.amin(0), "max": values.amax(0)}
