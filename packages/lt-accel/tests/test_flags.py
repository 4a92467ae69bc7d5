"""Flags between ranks of one machine and of several."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from lt_accel.flags import shared_flags
from lt_accel.group import join, world_of
from lt_interface import RankFailedError, World
from lt_interface.testing.ranks import run_ranks

AWAY: dict[str, Callable[[int, int], World]] = {
    "one machine": lambda rank, size: World(rank, size, rank, size),
    "two": World,
}
SECONDS = 20.0


def made(rank: int, machines: str = "one machine") -> Any:
    """Return new flags of two ranks that are on one machine, or say that they are not."""
    join(world_of(None), None, timedelta(seconds=SECONDS))
    return shared_flags(AWAY[machines](rank, 2), dist.new_group(backend="gloo"), SECONDS)


def job(do: Callable[[int, Any], Any]) -> Callable[[int], Any]:
    return lambda rank: do(rank, made(rank))


def test_every_exchange_has_the_bits_of_that_exchange() -> None:
    """Bits of all ranks are joined, exchange by exchange, whichever rank comes first."""

    def do(rank: int, flags: Any) -> list[int]:
        seen = []
        for i in range(200):
            if i % 20 == 0:
                time.sleep(0.002 * (rank ^ (i // 20) & 1))
            flags.send((i << 3 | 1 << rank) & 0x7FFFFFFF)
            seen.append(flags.receive())
        return seen

    assert run_ranks(job(do)) == [[i << 3 | 3 for i in range(200)]] * 2


def test_ranks_of_one_machine_share_memory_and_leave_no_file() -> None:
    """Memory is shared where all ranks are on one machine, and nowhere else; the file is gone at once."""
    before = set(Path("/dev/shm").glob("lt-flags-*"))
    assert run_ranks(lambda rank: [made(rank, machines) is not None for machines in AWAY]) == [[True, False]] * 2
    assert set(Path("/dev/shm").glob("lt-flags-*")) <= before


def test_ranks_that_cannot_open_the_file_share_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one rank does not see the file of the others, none of them shares memory."""

    def do(rank: int) -> Any:
        if rank == 1:
            monkeypatch.setattr("lt_accel.flags.os.open", _fail)
        return made(rank)

    assert run_ranks(do) == [None, None]


def _fail(*_: Any) -> int:
    raise FileNotFoundError("another machine's disk")


def ends(rank: int, flags: Any, end: Callable[[], None]) -> str:
    """End rank 1 between two exchanges, and return how long rank 0 waits for it."""
    flags.send(0)
    flags.receive()
    if rank == 1:
        end()
        return ""
    flags.send(0)
    begun = time.monotonic()
    with pytest.raises(RankFailedError, match=r"rank 1: it (ended|left) while rank 0 waited"):
        flags.receive()
    return "soon" if time.monotonic() - begun < SECONDS / 2 else "late"


def test_a_rank_that_leaves_is_an_error_of_those_that_wait_for_it() -> None:
    """A rank that takes part no more ends the others' wait at once, by its number, though its process goes on."""
    assert run_ranks(job(lambda rank, flags: ends(rank, flags, flags.close)))[0] == "soon"


def test_a_rank_that_is_killed_is_an_error_of_those_that_wait_for_it(tmp_path: Path) -> None:
    """A rank that is killed ends the others' wait within seconds, though a child of it lives on."""
    heard = tmp_path / "heard"

    def die() -> None:
        if os.fork() == 0:
            while not heard.exists():
                time.sleep(0.01)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    def do(rank: int, flags: Any) -> None:
        heard.write_text(ends(rank, flags, die))

    with pytest.raises(BaseException, match="rank 1 ended with exit code -9"):
        run_ranks(job(do))
    assert heard.read_text() == "soon"
