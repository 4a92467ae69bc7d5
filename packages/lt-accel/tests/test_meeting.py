"""Ranks that cannot meet: each ends with one error that names host and port."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from lt_accel import meeting
from lt_accel.meeting import meet
from lt_interface import MisconfigurationException, World
from lt_interface.testing.ranks import free_port, run_ranks

SECONDS = 100.0


def world(rank: int, size: int = 2) -> World:
    """Return a rank's place."""
    return World(rank, size, rank, size)


def _silent(connection: socket.socket) -> None:
    time.sleep(SECONDS)


def _rude(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    connection.close()


@pytest.fixture(params=[_silent, _rude, socket.socket.close])
def held(request: pytest.FixtureRequest) -> Iterator[int]:
    """Return a port that a program holds which knows nothing of ranks."""
    server = socket.create_server(("127.0.0.1", 0))
    answer: Callable[[socket.socket], None] = request.param

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


def outcome(rank: int, host: str, port: int, timeout: float, answer: float = 1.0) -> str:
    """Return what becomes of a rank that looks for the others."""
    meeting._ANSWER = answer  # of this forked process
    try:
        meet(world(rank), host, port, timedelta(seconds=timeout))
    except MisconfigurationException as error:
        return str(error)
    return "met"


def test_a_port_that_another_program_holds_ends_all_ranks(held: int) -> None:
    """Rank 0 and the others end in seconds, long before the timeout, each naming host and port."""
    before = time.monotonic()
    first, second = run_ranks(lambda rank: outcome(rank, "127.0.0.1", held, 1000.0), timeout=SECONDS)
    assert time.monotonic() - before < SECONDS / 2
    fix = "Set MASTER_PORT to a free port, the same for all ranks."
    assert first == (
        f"rank 0, 127.0.0.1:{held}: rank 0 must be able to listen on this port. Got a port that another process holds. "
        + fix
    )
    assert second.startswith(f"rank 1, 127.0.0.1:{held}: rank 0 must hold this port. Got another program, ")
    assert second.endswith(fix)


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid"])
def test_an_address_where_nobody_is_is_named(host: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A rank that reaches nobody says so while it waits, and at the timeout ends with the address and why."""
    port = free_port()
    (found,) = run_ranks(lambda rank: outcome(1, host, port, 2.0, answer=0.2), size=1, timeout=SECONDS)
    assert found.startswith(f"rank 1, {host}:{port}: rank 0 must be reached there within 2 s. Got ")
    assert "MASTER_ADDR and MASTER_PORT" in found
    assert f"rank 1, {host}:{port}: still waiting for rank 0." in capfd.readouterr().err


def test_rank_zero_must_know_its_own_host() -> None:
    """An address that rank 0 cannot resolve is its error at once."""
    port = free_port()
    found = outcome_of_one(0, "no.such.host.invalid", port)
    assert found.startswith(f"rank 0, no.such.host.invalid:{port}: rank 0 must be able to listen there, and to reach")
    assert found.endswith("Set MASTER_ADDR to the host of rank 0, for all ranks.")


def test_ranks_that_do_not_come_are_named() -> None:
    """Rank 0 names the ranks that gave no sign within the timeout."""
    found = outcome_of_one(0, "127.0.0.1", free_port(), 2.0)
    assert "every rank must come here within 2 s. Got no sign of ranks [1], of 2." in found


def outcome_of_one(rank: int, host: str, port: int, timeout: float = 1000.0) -> Any:
    """Return what becomes of a rank that is alone."""
    (found,) = run_ranks(lambda _: outcome(rank, host, port, timeout, answer=20.0), size=1, timeout=SECONDS)
    return found


def test_ranks_may_come_late() -> None:
    """A rank that comes before rank 0 listens waits for it."""
    port = free_port()

    def rank(number: int) -> str:
        time.sleep(0.0 if number else 2.0)
        return outcome(number, "127.0.0.1", port, SECONDS, answer=20.0)

    assert run_ranks(rank, timeout=SECONDS) == ["met", "met"]
