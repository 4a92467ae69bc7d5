"""Test the sharing of index streams among ranks, and their seeds."""

from __future__ import annotations

import pickle
import random
from itertools import zip_longest

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from lt_core.data.stream import IndexStream, Share, batch_seed, find_generators, share_count, shares, split

streams = st.builds(
    lambda n, size, seed: [
        order[i : i + size] for order in [random.Random(seed).sample(range(n), n)] for i in range(0, n, size)
    ],
    st.integers(0, 60),
    st.integers(1, 7),
    st.integers(0, 5),
)
ragged = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=5), max_size=20)
worlds = st.integers(1, 6)


def dealt(batches: list[list[int]], size: int, **options: object) -> list[list[Share]]:
    return [list(shares(batches, rank, size, **options)) for rank in range(size)]  # type: ignore[arg-type]


def in_order(ranks: list[list[Share]]) -> list[int]:
    """Put the ranks' own samples back together, global batch by global batch."""
    groups = zip_longest(*ranks)
    return [index for group in groups for share in group if share for index in share.indices[: share.own]]


@given(st.one_of(streams, ragged), worlds)
def test_evaluation_sees_every_sample_once_in_the_users_order(batches: list[list[int]], size: int) -> None:
    """The shares of all ranks, put together, are the user's stream: nothing twice, nothing left out."""
    ranks = dealt(batches, size, spare=False)
    assert in_order(ranks) == [index for batch in batches for index in batch]
    assert all(share.own == len(share.indices) for rank in ranks for share in rank)


@given(st.one_of(streams, ragged), worlds)
def test_training_gives_every_rank_equally_many_steps(batches: list[list[int]], size: int) -> None:
    """Every rank has a part of every global batch, and the order of samples is the same for every world size."""
    ranks = dealt(batches, size)
    assert {len(rank) for rank in ranks} == {share_count(len(batches), size)}
    assert all(share.indices for rank in ranks for share in rank)
    assert in_order(ranks) == [index for batch in batches for index in batch]


@given(st.one_of(streams, ragged), worlds)
def test_weights_of_a_global_batch_add_up_to_the_number_of_ranks(batches: list[list[int]], size: int) -> None:
    """The mean over ranks of weighted means is the mean over the global batch's samples."""
    for group in zip(*dealt(batches, size), strict=True):
        assert sum(share.own for share in group) == group[0].total
        assert {share.total for share in group} == {group[0].total}


@given(streams, worlds)
def test_drop_leaves_whole_global_batches_only(batches: list[list[int]], size: int) -> None:
    """Dropping cuts the stream at the last whole global batch."""
    ranks = dealt(batches, size, short="drop")
    whole = len(batches) // size * size
    assert in_order(ranks) == [index for batch in batches[:whole] for index in batch]
    assert {len(rank) for rank in ranks} == {share_count(len(batches), size, "drop")}


@given(streams, worlds)
def test_pad_makes_equal_parts_and_counts_own_samples_once(batches: list[list[int]], size: int) -> None:
    """Padding repeats samples of the same global batch until all parts are equal; own samples stay as they were."""
    ranks = dealt(batches, size, short="pad")
    assert in_order(ranks) == [index for batch in batches for index in batch]
    if len(batches) % size:
        assert len({len(rank[-1].indices) for rank in ranks}) == 1


@given(streams, worlds, worlds, st.integers(0, 10))
def test_a_stream_goes_on_with_another_number_of_ranks(
    batches: list[list[int]], size: int, other: int, steps: int
) -> None:
    """What the first world left over is exactly what the second takes."""
    used = min(steps * size, len(batches))
    before = dealt(batches[:used], size, spare=False)
    after = [list(shares(batches[used:], rank, other, spare=False, start=used)) for rank in range(other)]
    assert in_order(before) + in_order(after) == [index for batch in batches for index in batch]


@given(st.lists(st.integers()), worlds)
def test_split_is_contiguous_and_even(samples: list[int], size: int) -> None:
    """Parts follow one another and differ in length by one at most."""
    parts = [split(samples, rank, size) for rank in range(size)]
    assert [x for part in parts for x in part] == samples
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_positions_number_the_users_batches() -> None:
    """The position of a share is the number of the user batch, so seeds do not depend on the number of ranks."""
    batches = [[0, 1], [2, 3], [4, 5], [6]]
    ranks = dealt(batches, 2)
    assert [[share.position for share in rank] for rank in ranks] == [[0, 2], [1, 3]]


def test_unbatched_indices_are_shared_one_by_one() -> None:
    """Where batching is off, single indices are dealt out, and a rank without one repeats one in training."""
    assert [share.indices for share in shares([5, 6, 7], 1, 2)] == [6, 7]
    assert [share.own for share in shares([5, 6, 7], 1, 2)] == [1, 0]
    assert [share.indices for share in shares([5, 6, 7], 1, 2, spare=False)] == [6]


def test_seeds_differ_in_every_part_of_the_name() -> None:
    """Run seed, epoch, loader, cycle and position each change the seed; the same name gives the same."""
    names = [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0, 0, 0, 0, 1)]
    assert len({batch_seed(*name) for name in names}) == len(names)
    assert batch_seed(3, 1, 0, 0, 7) == batch_seed(3, 1, 0, 0, 7)


def test_stream_without_workers_is_the_samplers_own() -> None:
    """One process and no workers: the very index batches of the sampler, in step with ``taken``."""
    stream = IndexStream(BatchSampler(SequentialSampler(range(7)), 3, False))
    assert len(stream) == 3
    assert list(stream) == [[0, 1, 2], [3, 4, 5], [6]]
    assert stream.taken is not None
    assert list(stream.taken) == [[0, 1, 2], [3, 4, 5], [6]]
    assert stream.batch_size == 3


def test_payload_arrives_as_the_plain_index_with_generators_seeded() -> None:
    """Unpickling, as a worker does, gives the plain list and sets every global generator from the seed."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    stream = IndexStream([[1, 2]], workers=2, seed=4)
    (payload,) = list(stream)
    first = pickle.loads(pickle.dumps(payload)), random.random(), np.random.rand(), torch.rand(())
    again = pickle.loads(pickle.dumps(payload)), random.random(), np.random.rand(), torch.rand(())
    assert first == again
    assert type(first[0]) is list
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


def test_generators_of_samplers_datasets_and_transforms_are_found_once() -> None:
    """Generators are found where loaders own them, each once."""

    class Augment:
        def __init__(self) -> None:
            self.rng = np.random.default_rng(0)

    class Data(torch.utils.data.Dataset[int]):
        def __init__(self) -> None:
            self.transform, self.own = Augment(), random.Random(0)

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            return index

    g, data = torch.Generator(), Data()
    loader = DataLoader(data, sampler=RandomSampler(data, generator=g), generator=g)
    found = find_generators(loader)
    assert {id(one) for one in found} == {id(g), id(data.own), id(data.transform.rng)}
    assert len(found) == 3
