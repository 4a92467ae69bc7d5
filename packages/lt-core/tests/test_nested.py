"""Test the walks over nested batches with random collections."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lt_core.data.nested import apply_to_collection, batch_size, leaves, move_to_device
from lt_interface.nested import items_of

Pair = namedtuple("Pair", ["x", "y"])


class Bag(OrderedDict[str, Any]):
    """Mapping of a class of its own that refuses ``update``, as model outputs do."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("set items one by one")


@dataclass(frozen=True)
class Record:
    x: Any
    y: Any = None


def _bag(items: dict[str, Any]) -> Bag:
    bag = Bag()
    for key, item in items.items():
        bag[key] = item
    return bag


TENSORS = st.integers(1, 4).map(lambda n: torch.zeros(n, 2))
LEAVES = st.one_of(TENSORS, st.integers(), st.text(max_size=3), st.none())
KEYS = st.one_of(st.text(max_size=3), st.integers(0, 3))


def _collections(inner: Any) -> Any:
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(_bag),
        st.builds(Pair, inner, inner),
        st.builds(Record, inner, inner),
    )


BATCHES = st.recursive(LEAVES, _collections, max_leaves=8)


def _same_form(a: Any, b: Any) -> bool:
    """Return whether two batches have the same collections with the same keys, written without the walker."""
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(_same_form(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(_same_form(a[key], b[key]) for key in a)
    if isinstance(a, Record):
        return type(a) is type(b) and all(_same_form(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return items_of(b) is None


@given(BATCHES)
def test_every_leaf_lies_where_its_path_says(batch: Any) -> None:
    """A leaf's path is Python that leads to it."""
    for path, leaf in leaves(batch, "batch"):
        assert eval(path, {"batch": batch}) is leaf
        assert items_of(leaf) is None


@given(BATCHES)
def test_a_batch_in_which_nothing_changes_comes_back_itself(batch: Any) -> None:
    """The identity, and a move to where all tensors are, give the same object."""
    assert apply_to_collection(batch, object, lambda leaf: leaf) is batch
    assert apply_to_collection(batch, Tensor, lambda tensor: tensor) is batch
    assert move_to_device(batch, "cpu") is batch


@given(BATCHES)
def test_a_function_reaches_every_leaf_of_its_type_and_no_other(batch: Any) -> None:
    """All collections keep their types, keys and order, and the batch that was given stays as it was."""
    before = list(leaves(batch))
    made = apply_to_collection(batch, int, lambda number: number + 1)
    assert _same_form(batch, made)
    after = list(leaves(made))
    assert [path for path, _ in after] == [path for path, _ in before]
    for (_, old), (_, new) in zip(before, after, strict=True):
        assert new == old + 1 if isinstance(old, int) else new is old
    assert all(a is b for (_, a), (_, b) in zip(before, leaves(batch), strict=True))


@given(BATCHES)
def test_a_move_takes_every_tensor_along(batch: Any) -> None:
    """Whatever the nesting, each tensor is moved, and nothing else changes."""
    moved = move_to_device(batch, "meta")
    assert _same_form(batch, moved)
    for (_, old), (_, new) in zip(leaves(batch), leaves(moved), strict=True):
        assert new.device.type == "meta" and new.shape == old.shape if isinstance(old, Tensor) else new is old


@given(BATCHES)
def test_a_batch_is_as_large_as_its_first_tensor(batch: Any) -> None:
    """The size is the first dimension of the first tensor; others of another size are reported."""
    sizes = [len(leaf) for _, leaf in leaves(batch) if isinstance(leaf, Tensor)]
    assert batch_size(batch) == (sizes[0] if sizes else None, len(set(sizes)) > 1)


class Stubborn(list):  # type: ignore[type-arg]
    """List that cannot be made of one argument."""

    def __init__(self, a: Any, b: Any) -> None:
        super().__init__([a, b])


class Single(Mapping[str, Any]):
    """Read-only mapping that cannot be made of a dict."""

    def __init__(self, key: str, value: Any) -> None:
        self.key, self.value = key, value

    def __getitem__(self, key: str) -> Any:
        return self.value

    def __iter__(self) -> Iterator[str]:
        return iter([self.key])

    def __len__(self) -> int:
        return 1


def test_a_collection_that_cannot_be_made_again_comes_back_plain() -> None:
    """A list, a mapping or a read-only view of a kind of its own becomes a list or a dict, not an error."""
    ones = torch.ones(1)
    for data, plain in (
        (Stubborn(ones, ones), [2, 2]),
        (Single("a", ones), {"a": 2}),
        (MappingProxyType({"a": ones}), {"a": 2}),
    ):
        assert apply_to_collection(data, torch.Tensor, lambda x: int(2 * x)) == plain


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_copies_do_not_block_except_to_mps(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors, their subclasses and whatever moves itself are copied without waiting, where that is safe."""
    asked: list[bool] = []

    def to(self: Any, device: torch.device, non_blocking: bool = False) -> Any:
        assert device.type == kind
        asked.append(non_blocking)
        return self

    class Graph:
        pass

    Graph.to = to  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.Tensor, "to", to)
    one = torch.ones(1)
    for batch in (one, [one], (one,), {"x": one}, torch.nn.Parameter(one), [torch.nn.Parameter(one)], Graph()):
        assert move_to_device(batch, kind) is batch
    assert asked == [kind != "mps"] * 7


class _Graphs:
    """Graphs in one batch, as libraries put them together: nodes of all of them, and how many graphs these are."""

    def __init__(self, **own):
        self.x = torch.ones(7, 2)
        vars(self).update(own)

    def __iter__(self):
        if hasattr(self, "edges"):
            raise NotImplementedError
        return iter(vars(self).items())


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (_Graphs(num_graphs=3), 3),
        ((_Graphs(batch_size=3), torch.ones(3)), 3),
        ({"graph": _Graphs(batch_size=torch.Size([3, 2])), "label": torch.ones(3)}, 3),
        (_Graphs(num_graphs=3, edges=1), 3),
        ((_Graphs(edges=1), torch.ones(4)), 4),
        (_Graphs(batch_size=torch.ones(1)), 7),
        ({"batch_size": 3, "x": torch.ones(5)}, 5),
    ],
)
def test_a_batch_that_knows_its_size_is_asked(batch, size):
    """An object of another kind than a plain collection may say its size; one that cannot iterate is passed over."""
    assert batch_size(batch)[0] == size
