"""What the other ranks of a run have to report: flags, and that one of them failed.

A rank that waits in a collective cannot be woken by a signal or an exception, and one that failed must wait for nobody.
So each wait of ours looks up now and then, and a rank that fails leaves a record in the store where the ranks found
one another before it goes. It also sends its next few flags at once, with one that says that it failed: who waits for
flags, or in a barrier, learns of it without delay. Until when they go is in the record, and whoever leaves sends its
own up to there: so no flag stays on its way, which the end of a process would wait for.

Waits inside torch, such as that of a backward pass, end when the failed rank lets go of the process group.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from lt_accel.flags import SharedFlags
from lt_interface import RankFailedError

__all__ = ["Peers"]

_LOOK = 0.5  # seconds between two looks at the store, which cost 0.2 ms each
_FAILED = 1 << 32  # beyond the bits of `agree`
_AHEAD = 4  # flags; a rank has sent at most two more than another
_RECORD = "failed"


class Peers:
    """Flags of all ranks, exchanged one after another, and the record of the first failure.

    Args:
        group: A gloo group of all ranks that nothing else uses.
        store: The store of this group of ranks, in which no record is yet.
        shared: Flags in shared memory, for those that go after each batch; that group if None.
    """

    def __init__(self, group: Any, store: Any, shared: SharedFlags | None = None) -> None:
        self._group, self._store, self._shared = group, store, shared
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        self._options: Any = dist.AllreduceOptions()
        self._options.reduceOp = dist.ReduceOp.BOR  # type: ignore[assignment]
        self._sent = 0
        self._flags, self._on_way = torch.zeros(1, dtype=torch.int64), None
        self._waits: Any = None
        self._last: list[Any] = []
        self._failure: RankFailedError | None = None

    def exchange(self, begin: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Call a collective of torch.distributed, and wait for it.

        Args:
            begin: The collective.
            args: Its arguments.
            options: Its keywords; ``async_op`` is given here.

        Raises:
            RankFailedError: If a rank failed, before or meanwhile.
        """
        self._check()
        self.wait(begin(*args, async_op=True, **options))

    def send_flags(self, bits: int) -> None:
        """Send this rank's flags, without waiting.

        Raises:
            RankFailedError: If a rank failed before.
        """
        self._check()
        if self._shared is not None:
            self._shared.send(bits)
            return
        self._flags.fill_(bits)
        self._on_way = self._send(self._flags)

    def receive_flags(self) -> int:
        """Return the flags that any rank sent.

        Raises:
            RankFailedError: If one failed in place of sending some.
        """
        if self._shared is None:
            return self.receive(self._on_way, self._flags)
        try:
            return self._shared.receive()
        except RankFailedError as error:
            raise self._learn() or error from None

    def send(self, flags: torch.Tensor) -> Any:
        """Send flags, a tensor of one int64 that all ranks' flags replace; return what `receive` waits for.

        Raises:
            RankFailedError: If a rank failed before.
        """
        self._check()
        return self._send(flags)

    def _send(self, flags: torch.Tensor) -> Any:
        self._sent += 1
        return self._group.allreduce([flags], self._options)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def receive(self, work: Any, flags: torch.Tensor) -> int:
        """Return the flags that any rank sent.

        Raises:
            RankFailedError: If one failed in place of sending some.
        """
        self.wait(work)
        found = int(flags)
        if found & _FAILED:
            raise self._learn() or RankFailedError(f"a rank: it failed, so rank {self._rank} cannot go on.")
        return found

    def wait(self, work: Any, name: str = "", timeout: float | None = None) -> None:
        """Wait for an exchange, and meanwhile look whether a rank failed.

        Args:
            work: What torch returned for an exchange that was begun without waiting.
            name: What is waited for; with a timeout.
            timeout: Seconds until it is an error; None for the group's own.

        Raises:
            RankFailedError: If a rank failed.
            TimeoutError: If a rank does not come in time; it names those that are missing.
        """
        self._waits = work
        until = None if timeout is None else time.monotonic() + timeout
        look = timedelta(seconds=_LOOK if timeout is None else min(_LOOK, timeout / 2))
        key = f"at/{self._sent}/"
        while True:
            try:
                work.wait(look)
                break
            except RuntimeError as error:
                if (failure := self._learn()) is not None:
                    raise failure from error
                if work.is_completed():  # between the two looks, perhaps: well, or with an error of its own
                    work.wait()
                    break
                if until is None:
                    continue
                self._store.set(key + str(self._rank), "")
                if time.monotonic() >= until:
                    missing = [r for r in range(self._size) if not self._store.check([key + str(r)])]
                    raise TimeoutError(
                        f"barrier {name!r}: every rank must come within {timeout:g} s. Got no sign of ranks {missing}. "
                        "Look for what they did in its place."
                    ) from None
        self._waits = None

    def fail(self, where: str, error: BaseException) -> BaseException:
        """Record a failure, unless another rank did so before, and send no more than others wait for.

        Args:
            where: What this rank was doing.
            error: Its error.

        Returns:
            The error, or where that only follows from another rank's, one that names the other.
        """
        until = self._sent + _AHEAD
        error = self._lost(where, error)
        own = {"rank": self._rank, "where": where, "got": f"{type(error).__name__}: {error}", "until": until}
        try:
            first = json.loads(self._store.compare_set(_RECORD, "", json.dumps(own)))
        except RuntimeError:  # the rank that holds the store is gone
            first = own
        if self._shared is not None:
            self._shared.close()
        while self._sent < first["until"]:
            self._last.append(self._send(torch.tensor([_FAILED])))
        self._failure = self._failure or self._described(first)
        return self._failure if first["rank"] != self._rank and _follows(error) else error

    def _lost(self, where: str, error: BaseException) -> BaseException:
        """Return an error as it is, or for the end of a connection of which no rank said why, one that says so."""
        if "/gloo/" not in str(error) or self._learn() is not None:
            return error
        gone = f"rank {1 - self._rank}" if self._size == 2 else "another rank"
        lost = RankFailedError(
            f"{gone}: it must run as long as rank {self._rank}. Got the end of its connection in {where}, and no error "
            f"of its own. Look at what it wrote, and in the system's log whether it was killed."
        )
        lost.__cause__ = error
        return lost

    def settled(self, seconds: float) -> bool:
        """Return whether the exchange that this rank waited for has ended, now that others leave as well.

        Args:
            seconds: How long to wait for that.
        """
        until = time.monotonic() + seconds
        while self._waits is not None and not self._waits.is_completed():
            if time.monotonic() >= until:
                return False
            time.sleep(0.01)
        self._waits = None
        return True

    def done(self) -> bool:
        """Return whether no flags are on their way that were sent for a failure."""
        return all(work.is_completed() for work in self._last)

    def _learn(self) -> RankFailedError | None:
        """Return the first failure of a rank as the store has it, if there is one."""
        if self._failure is None:
            try:
                if not self._store.check([_RECORD]):
                    return None
                self._failure = self._described(json.loads(self._store.get(_RECORD)))
            except RuntimeError:  # the rank that holds the store is gone
                return None
        return self._failure

    def _described(self, first: dict[str, Any]) -> RankFailedError:
        rank, got = first["rank"], first["got"].rstrip(".")
        return RankFailedError(
            f"rank {rank}: it failed in {first['where']}, so rank {self._rank} cannot go on. Got {got}. "
            f"Look at what rank {rank} wrote; the next run begins when every rank begins it.",
        )


def _follows(error: BaseException | None) -> bool:
    """Return whether an error is one of those that a rank gets because another is gone."""
    while error is not None:
        if isinstance(error, RankFailedError | dist.DistError) or "/gloo/" in str(error):
            return True
        error = None if error.__cause__ is error else error.__cause__  # as after `raise error from error`
    return False
