"""Test the combination of several loaders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader

from lt_core.data import CombinedLoader
from lt_core.data.combined import flatten, unflatten
from lt_interface.errors import ConfigError


def loader(n: int, start: int = 0) -> DataLoader[Any]:
    return DataLoader(list(range(start, start + n)), batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("min_size", [[0, 10], [1, 11]]),
        ("max_size", [[0, 10], [1, 11], [2, None]]),
        ("max_size_cycle", [[0, 10], [1, 11], [2, 10]]),
    ],
)
def test_modes_side_by_side(mode: Any, expected: list[list[int | None]]) -> None:
    """Each mode ends, pads or starts again as its name says."""
    combined = CombinedLoader([loader(3), loader(2, 10)], mode)
    assert len(combined) == len(expected)
    assert [batch for batch, _, _ in combined] == expected
    assert [(index, number) for _, index, number in combined] == [(i, 0) for i in range(len(expected))]


def test_sequential_takes_one_after_another() -> None:
    """Sequential mode names the loader and counts batches within it."""
    combined = CombinedLoader({"a": loader(2), "b": loader(2, 10)}, "sequential")
    assert list(combined) == [(0, 0, 0), (1, 1, 0), (10, 0, 1), (11, 1, 1)]
    assert len(combined) == 4


def test_limits_hold_for_each_loader() -> None:
    """One number limits all loaders, a list each its own."""
    combined = CombinedLoader([loader(3), loader(4, 10)], "sequential")
    combined.limits = [1, 2]  # type: ignore[assignment]
    assert [batch for batch, _, _ in combined] == [0, 10, 11]
    combined.limits = 1  # type: ignore[assignment]
    assert [batch for batch, _, _ in combined] == [0, 10]
    with pytest.raises(ConfigError, match="3 limits for 2 loaders"):
        combined.limits = [1, 2, 3]  # type: ignore[assignment]


def test_batches_have_the_structure_of_the_loaders() -> None:
    """Nested dicts and lists of loaders give nested dicts and lists of batches."""
    combined = CombinedLoader({"x": [loader(2), loader(2, 10)], "y": loader(2, 20)})
    assert next(iter(combined))[0] == {"x": [0, 10], "y": 20}


def test_length_needs_lengths_where_it_depends_on_them() -> None:
    """An unsized loader makes the length unknown, unless the shortest decides and is known."""

    def endless() -> Any:
        yield from iter(int, 1)

    with pytest.raises(TypeError, match="no length"):
        len(CombinedLoader([loader(2), endless], "max_size_cycle"))
    assert len(CombinedLoader([loader(2), endless], "min_size")) == 2
    assert [batch for batch, _, _ in CombinedLoader([loader(2), endless], "min_size")] == [[0, 0], [1, 0]]


def test_an_unknown_mode_is_refused_with_the_nearest() -> None:
    """A mode that does not exist is named with the one that was meant."""
    with pytest.raises(ConfigError, match='Did you mean "max_size_cycle"'):
        CombinedLoader([loader(1)], "max_size_cycl")  # type: ignore[arg-type]


def test_states_of_stateful_loaders_are_kept() -> None:
    """Loaders with state_dict are saved and restored by their number."""

    class Stateful(list[int]):
        place = 3

        def state_dict(self) -> dict[str, int]:
            return {"place": self.place}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.place = state["place"]

    one, other = Stateful([1]), Stateful([2])
    state = CombinedLoader([loader(1), one]).state_dict()
    assert state == {"1": {"place": 3}}
    other.place = 0
    CombinedLoader([loader(1), other]).load_state_dict(state)
    assert other.place == 3


def test_a_list_of_batches_is_a_loader_and_a_list_of_loaders_is_not() -> None:
    """What holds loaders is structure; a list without any is itself a loader."""
    batches = [[1, 2], [3, 4]]
    assert flatten(batches) == ([batches], [()])
    tree = {"a": batches, "b": [loader(1), batches]}
    leaves, paths = flatten(tree)
    assert paths == [("a",), ("b", 0), ("b", 1)]
    assert leaves[0] is batches
    assert unflatten(tree, iter("xyz")) == {"a": "x", "b": ["y", "z"]}


class Searched(list[Any]):
    """List of batches that counts how often it is searched."""

    times = 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        return super().__iter__()


def test_a_list_of_batches_is_not_searched_for_loaders_at_every_round() -> None:
    """Delivering costs no look at every batch of a list for each batch of it."""
    few, many = Searched([1] * 3), Searched([1] * 300)
    for batches in (few, many):
        assert len(list(CombinedLoader({"a": batches, "b": batches}))) == len(batches)
    assert few.times == many.times
