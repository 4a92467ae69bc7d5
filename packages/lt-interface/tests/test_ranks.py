"""Run real ranks in a test: results, errors, deaths, and an end in any case."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from lt_interface.testing.ranks import RankError, RanksTimeoutError, run_ranks


class UnsendableError(Exception):
    """Error that cannot be pickled."""

    def __reduce__(self) -> str:
        raise TypeError("not to be pickled")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_ranks_know_their_place() -> None:
    """Each rank has its number, the world's size and one common address in its environment, and one thread."""

    def job(rank: int) -> tuple[str, ...]:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        return *(os.environ[name] for name in names), str(torch.get_num_threads())

    before = dict(os.environ)
    first, *others = run_ranks(job, 3)
    assert first[:5] == ("0", "0", "3", "3", "127.0.0.1")
    assert first[6] == "1"
    assert [other[:2] for other in others] == [("1", "1"), ("2", "2")]
    assert all(other[2:] == first[2:] for other in others)
    assert dict(os.environ) == before


def test_large_results_come_back() -> None:
    """A result larger than a pipe's buffer comes back whole, tensors as values."""
    found = run_ranks(lambda rank: torch.full((300_000,), float(rank)))
    assert [float(x.sum()) for x in found] == [0.0, 300_000.0]


def test_a_ranks_error_keeps_its_type_and_traceback() -> None:
    """The first error is raised as it is, with the rank's traceback as its cause; the other ranks end at once."""
    began = time.monotonic()

    def job(rank: int) -> None:
        if rank == 1:
            raise KeyError("lost")
        time.sleep(60)

    with pytest.raises(KeyError, match="lost") as caught:
        run_ranks(job)
    assert time.monotonic() - began < 30
    assert "rank 1:" in str(caught.value.__cause__)
    assert "in job" in str(caught.value.__cause__)


def test_an_error_that_cannot_travel_is_described() -> None:
    """An error that cannot be pickled comes as a RankError with its traceback."""

    def job(rank: int) -> None:
        raise UnsendableError("odd")

    with pytest.raises(RankError, match="UnsendableError: odd"):
        run_ranks(job)


def test_a_result_that_cannot_travel_is_an_error() -> None:
    """A result that cannot be pickled is an error of its rank, not a hang."""
    with pytest.raises((AttributeError, TypeError, RankError), match="pickle"):
        run_ranks(lambda rank: lambda: rank)


def test_a_killed_rank_is_named() -> None:
    """A rank that dies without a word is named, with its exit code."""

    def job(rank: int) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    with pytest.raises(RankError, match="rank 1 ended with exit code -9"):
        run_ranks(job)


def test_ranks_that_hang_are_killed_where_they_stand() -> None:
    """At the time limit the error says where each rank stood, and none is left."""
    reader, writer = os.pipe()

    def stand_here(rank: int) -> int:
        os.write(writer, b"%d\n" % os.getpid())
        if rank == 1:
            os.read(reader, 0)
            signal.pause()
        return rank

    with pytest.raises(RanksTimeoutError) as caught:
        run_ranks(stand_here, timeout=0.5)
    assert "rank 0 was done" in str(caught.value)
    assert "in stand_here" in str(caught.value)
    os.close(writer)
    pids = [int(line) for line in os.read(reader, 100).split()]
    os.close(reader)
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)
