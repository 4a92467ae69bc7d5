"""Test the size of batches and their move to a device."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from lt_core.data import batch_size, move_to_device
from lt_core.data.nested import apply_to_collection

Pair = namedtuple("Pair", ["x", "y"])


@dataclass(frozen=True)
class Record:
    x: torch.Tensor
    name: str = "a"


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (torch.zeros(3, 2), (3, False)),
        (torch.zeros(()), (1, False)),
        ([torch.zeros(4, 2), torch.zeros(4)], (4, False)),
        ([torch.zeros(4, 2), torch.zeros(5)], (4, True)),
        ({"name": "abc", "x": torch.zeros(2, 2)}, (2, False)),
        ({"deep": [("text", Record(torch.zeros(6)))]}, (6, False)),
        (Pair(torch.zeros(2), torch.zeros(2)), (2, False)),
        ("text", (None, False)),
        ([1, None, "text"], (None, False)),
        (iter([torch.zeros(2)]), (None, False)),
    ],
)
def test_batch_size_is_that_of_the_first_tensor(batch: Any, expected: tuple[int | None, bool]) -> None:
    """The first tensor decides, depth first; other sizes make it ambiguous; no tensor means no size."""
    assert batch_size(batch) == expected


def test_move_returns_the_same_object_when_nothing_moves() -> None:
    """A batch that is on its device already is not rebuilt."""
    for batch in (
        [torch.zeros(2), "a"],
        (torch.zeros(2),),
        {"x": torch.zeros(2)},
        Record(torch.zeros(1)),
        "a",
        3,
        None,
    ):
        assert move_to_device(batch, torch.device("cpu")) is batch


def test_move_reaches_every_tensor_and_keeps_every_type() -> None:
    """Nested lists, tuples, named tuples, mappings and dataclasses come back as what they were, moved."""
    batch = {
        "list": [torch.zeros(2), "text", 3],
        "tuple": (torch.zeros(2), [torch.zeros(1)]),
        "pair": Pair(torch.zeros(2), None),
        "ordered": OrderedDict(a=torch.zeros(2)),
        "record": Record(torch.zeros(2)),
        "packed": pack_sequence([torch.zeros(2)]),
    }
    moved = move_to_device(batch, "meta")
    assert moved["list"][0].is_meta
    assert moved["list"][1:] == ["text", 3]
    assert moved["tuple"][0].is_meta
    assert moved["tuple"][1][0].is_meta
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].x.is_meta
    assert isinstance(moved["ordered"], OrderedDict)
    assert moved["ordered"]["a"].is_meta
    assert isinstance(moved["record"], Record)
    assert moved["record"].x.is_meta
    assert moved["packed"].data.is_meta
    assert not batch["record"].x.is_meta  # type: ignore[attr-defined]


def test_move_calls_to_of_objects_that_have_it() -> None:
    """An object with its own ``to`` is moved by it, also where it takes no further argument."""

    class Graph:
        def to(self, device: torch.device) -> str:
            return f"moved to {device}"

    assert move_to_device([Graph()], "meta") == ["moved to meta"]


def test_apply_to_collection_applies_to_the_given_types_only() -> None:
    """Objects of the types are replaced; a collection without any comes back itself."""
    data = {"a": [1, 2.0], "b": (3, "x")}
    assert apply_to_collection(data, int, lambda value, by: value + by, 10) == {"a": [11, 2.0], "b": (13, "x")}
    assert apply_to_collection(data, bytes, len) is data
