"""The suite of collectives: one that works passes, and each way to break it is caught."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from lt_interface import PlainCollectives
from lt_interface.testing import CollectivesConformance


class Gloo:
    """Exchange over a gloo group, as short as it can be."""

    def __init__(self) -> None:
        dist.init_process_group("gloo")
        self.flags: Any = dist.new_group(backend="gloo")
        self.size, self.sent, self.word = dist.get_world_size(), None, torch.zeros(1, dtype=torch.int32)

    def everyone(self, obj: Any, group: Any = None) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, obj, group=group)
        return found

    def reduce(self, tensor: Any, op: str = "mean", group: Any = "data") -> Any:
        every = torch.stack(self.everyone(tensor)).double()
        found = {"mean": every.mean(0), "sum": every.sum(0), "min": every.amin(0), "max": every.amax(0)}[op]
        keeps = tensor.is_floating_point() or op in ("min", "max") or self.size == 1
        return found.to(tensor.dtype if keeps else torch.float64)

    def all_gather(self, tensor: Any, group: Any = "data", sync_grads: bool = False) -> Any:
        every = torch.stack(self.everyone(tensor.detach()))
        if not sync_grads:
            return every if self.size > 1 else every[0]
        mine = torch.zeros_like(every)
        mine[dist.get_rank()] = 1.0
        gathered = every * (1 - mine) + mine * tensor
        gathered.register_hook(lambda gradient: torch.stack(self.everyone(gradient)).sum(0))
        return gathered

    def broadcast_object(self, obj: Any, src: int = 0) -> Any:
        return self.everyone(obj)[src]

    def gather_object(self, obj: Any) -> Any:
        return self.everyone(obj)

    def barrier(self, name: str = "", timeout: float = 60.0) -> None:
        from datetime import timedelta

        try:
            dist.monitored_barrier(self.flags, timedelta(seconds=timeout))
        except RuntimeError as error:
            raise TimeoutError(f"{name}: {error}") from error

    def any(self, flag: bool) -> bool:
        return any(self.everyone(flag))

    def agree(self, bits: int) -> int:
        if self.size == 1:
            return bits
        before = Gloo.settle(self)
        self.word = torch.tensor([bits], dtype=torch.int32)
        self.sent = dist.all_reduce(self.word, dist.ReduceOp.BOR, group=self.flags, async_op=True)
        return before

    def settle(self) -> int:
        if self.sent is None:
            return 0
        self.sent.wait()
        self.sent = None
        return int(self.word)


class TestPlainCollectives(CollectivesConformance):
    sizes = (1,)

    def make(self) -> Any:
        return PlainCollectives()


class TestGloo(CollectivesConformance):
    def make(self) -> Any:
        return Gloo()


def _summing(self: Any, tensor: Any, op: str = "mean", group: Any = "data") -> Any:
    return Gloo.reduce(self, tensor, "sum" if op == "mean" else op)


def _without_all(self: Any, tensor: Any, op: str = "mean", group: Any = "data") -> Any:
    return tensor if group == "all" else Gloo.reduce(self, tensor, op)


def _in_bytes(self: Any, tensor: Any, op: str = "mean", group: Any = "data") -> Any:
    return Gloo.reduce(self, tensor.to(torch.uint8), op).to(tensor.dtype)


def _at_once(self: Any, bits: int) -> int:
    found = 0
    for one in self.everyone(bits, self.flags):
        found |= one
    return found


def _keeps_old(self: Any, bits: int) -> int:
    self.word = self.word | Gloo.agree(self, bits)
    return int(self.word)


def _largest(self: Any, bits: int) -> int:
    options = (max(self.everyone(bits, self.flags)), getattr(self, "last", 0))
    self.last = options[0]
    return options[1]


def _waiting(self: Any, bits: int) -> int:
    found = Gloo.agree(self, bits)
    if self.sent is not None:
        self.sent.wait()
    return found


def _nameless(self: Any, name: str = "", timeout: float = 60.0) -> None:
    Gloo.barrier(self, "", timeout)


def _patient(self: Any, name: str = "", timeout: float = 60.0) -> None:
    Gloo.barrier(self, name, 60.0)


def _odd_order(self: Any, tensor: Any, group: Any = "data", sync_grads: bool = False) -> Any:
    found = Gloo.all_gather(self, tensor, group, sync_grads)
    return found.flip(0) if self.size > 1 else found


def _own_gradient(self: Any, tensor: Any, group: Any = "data", sync_grads: bool = False) -> Any:
    every = Gloo.all_gather(self, tensor)
    return torch.stack([tensor if rank == dist.get_rank() else every[rank] for rank in range(self.size)])


@pytest.mark.parametrize(
    ("test", "changes"),
    [
        ("test_fills_the_protocol", {"__new__": lambda cls: object()}),
        ("test_reduces", {"reduce": _summing}),
        ("test_reduces", {"reduce": _in_bytes}),
        ("test_reduces", {"reduce": lambda self, tensor, op="mean", group="data": tensor}),
        ("test_gathers", {"all_gather": _odd_order}),
        ("test_gathers", {"all_gather": lambda self, tensor, group="data", sync_grads=False: tensor}),
        ("test_gathered_gradients_flow", {"all_gather": lambda self, t, group="data", sync_grads=False: t.detach()}),
        ("test_gathered_gradients_flow", {"all_gather": _own_gradient}),
        ("test_knows_the_group_of_all", {"reduce": _without_all}),
        ("test_gathers_objects", {"gather_object": lambda self, obj: [obj] * self.size}),
        ("test_gathers_objects", {"gather_object": lambda self, obj: self.everyone(obj)[::-1]}),
        ("test_broadcasts_objects", {"broadcast_object": lambda self, obj, src=0: obj}),
        ("test_any", {"any": lambda self, flag: flag}),
        ("test_any", {"any": lambda self, flag: all(self.everyone(flag))}),
        ("test_barrier_waits", {"barrier": lambda self, name="", timeout=60.0: None}),
        ("test_late_rank_is_an_error", {"barrier": _nameless}),
        ("test_late_rank_is_an_error", {"barrier": _patient}),
        ("test_agrees_one_call_late", {"agree": lambda self, bits: bits}),
        ("test_agrees_one_call_late", {"agree": _at_once}),
        ("test_agrees_one_call_late", {"agree": _keeps_old}),
        ("test_agrees_one_call_late", {"agree": _largest}),
        ("test_agreeing_waits_for_nobody", {"agree": _waiting}),
        ("test_settles_what_was_sent", {"settle": lambda self: 0}),
        ("test_settles_what_was_sent", {"settle": lambda self: Gloo.agree(self, 0)}),
        ("test_settles_what_was_sent", {"settle": lambda self: int(self.word) if self.sent else 0}),
    ],
)
def test_broken_collectives_are_caught(test: str, changes: dict[str, Any]) -> None:
    """Each rule for collectives fails those that break it, on two ranks."""
    broken = type("Broken", (Gloo,), changes)
    given = {"make": lambda self: broken(), "sizes": (2,), "timeout": 2.0}
    suite: Any = type("TestBroken", (CollectivesConformance,), given)()
    with pytest.raises((AssertionError, RuntimeError)):
        getattr(suite, test)()
