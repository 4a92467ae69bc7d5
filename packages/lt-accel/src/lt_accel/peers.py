"""What the other ranks of a run have to report: flags, and that one of them failed.

A rank that waits in a collective cannot be woken by a signal or an exception, and one that failed must wait for nobody.
So each wait of ours looks up now and then, and a rank that fails leaves a record in the store where the ranks found
one another before it goes. It also sends its next few flags at once, with one that says that it failed: who waits for
flags, or in a barrier, learns of it without delay. Until when they go is in the record, and whoever leaves sends its
own up to there: so no flag stays on its way, which the end of a process would wait for.

Before each exchange of all ranks they meet, and say what they are about to do: where one rank does something else, or
has gone on without it, that is an error that names the ranks, in place of an exchange that never ends or ends the
process.

Waits inside torch, such as that of a backward pass, end when the failed rank lets go of the process group.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from lt_accel.flags import LateError, SharedFlags, too_late
from lt_interface import MisconfigurationException, RankFailedError

__all__ = ["Peers", "everyone", "follows"]

_LOOK = 0.5  # seconds between two looks at the store, which cost 0.2 ms each
_FAILED = 1 << 32  # beyond the bits of `agree`
_FLAGS, _MEETS = 1 << 33, 1 << 34  # what a word is sent for, so that one for flags never passes for a meeting
_DIGITS, _FIRST, _SECOND = (1 << 12) - 1, 35, 47  # what is met for, as a number and its complement
_TOGETHER = 2.0  # seconds for the others to find, too, that their time is up
_AHEAD = 4  # flags; a rank has sent at most two more than another
_RECORD = "failed"
_FIX = (
    "Call it on every rank, not for one alone; trainer.save_checkpoint and the compute() of a metric object exchange, "
    "too."
)
_INTERRUPTED = 130  # exit code of a program that Ctrl-C ends
_OURS = ("lt_accel.", "lt_interface.")


def everyone() -> Any:
    """Return the process group of all ranks."""
    return dist.group.WORLD


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

    def exchange(self, begin: Callable[..., Any], *args: Any, group: Callable[[], Any] = everyone) -> None:
        """Meet for a collective of torch.distributed, call it, and wait for it.

        Args:
            begin: The collective.
            args: Its arguments.
            group: Returns the process group; a group itself would live on with the frames of an error.

        Raises:
            RankFailedError: If a rank failed, before or meanwhile.
            MisconfigurationException: If other ranks do something else.
        """
        self._check()
        tensor = next(each for each in args if isinstance(each, torch.Tensor))
        if group() is dist.group.WORLD:
            what = f"{begin.__name__} of {tensor.numel()} {str(tensor.dtype).removeprefix('torch.')}"
            self.meet(f"{what} by {_caller()}")
        work = begin(*args, group=group(), async_op=True)
        if tensor.device.type == "cpu":
            self.wait(work)
        else:  # in the order of the device's own work: nccl takes a wait with a timeout for the end of its group
            work.wait()

    def mark(self) -> None:
        """Count an exchange that torch makes by itself, before it begins, so that who waits elsewhere learns of it."""
        if self._shared is not None:
            self._shared.mark()

    def meet(self, what: str, timeout: float | None = None, fix: str = _FIX) -> None:
        """Wait until every rank comes to the same place.

        Args:
            what: What this rank is about to do there.
            timeout: Seconds until it is an error; None for the group's own.
            fix: What users may do where not all ranks come.

        Raises:
            RankFailedError: If a rank failed.
            TimeoutError: If a rank does not come in time; it names those that are missing.
            MisconfigurationException: If ranks are about to do other things, or went on without this one.
        """
        self._check()
        if self._shared is None:
            self._meet_over_group(what, timeout, fix)
            return
        shared = self._shared
        shared.enter(what)
        try:
            ahead = shared.await_all(what, shared.timeout if timeout is None else timeout, self._look)
            if ahead:
                self._raise_apart(what, fix, dict.fromkeys(ahead, "gone on without it"), shared.late())
        except RankFailedError as error:
            raise self._learn() or error from None
        if not shared.alike():
            self._raise_apart(what, fix, {rank: f"in {shared.doing(rank)}" for rank in range(self._size)})

    def _meet_over_group(self, what: str, timeout: float | None, fix: str) -> None:
        number = zlib.crc32(what.encode()) & _DIGITS
        word = _MEETS | number << _FIRST | (number ^ _DIGITS) << _SECOND
        flags = torch.tensor([word])
        self._store.set(f"doing/{self._sent + 1}/{self._rank}", what)
        work = self.send(flags)
        self.wait(work, what, timeout)
        found = self.receive(work, flags)
        if found != word:
            self._raise_apart(what, fix, self._told())
        self._store.delete_key(f"doing/{self._sent}/{self._rank}")

    def _told(self) -> dict[int, str]:
        """Return, where words of other kinds came together, what each rank was about to do."""
        found = {}
        for rank in range(self._size):
            key = f"doing/{self._sent}/{rank}"
            found[rank] = f"in {self._store.get(key).decode()}" if self._store.check([key]) else "gone on without it"
        return found

    def _raise_apart(self, what: str, fix: str, others: dict[int, str], late: Sequence[int] = ()) -> NoReturn:
        """Raise the error of ranks that do not do the same.

        Args:
            what: What this rank is about to do.
            fix: What users may do about it.
            others: Where other ranks are.
            late: The ranks that have not come; all others are with this one.
        """
        here = f"in {what}"
        if late:
            others = {r: here for r in range(self._size) if r not in late} | others
        places: dict[str, list[int]] = {}
        for rank, place in sorted(others.items()):
            places.setdefault(place, []).append(rank)
        got = ", ".join(f"{_ranks(ranks)} {place}" for place, ranks in places.items())
        raise MisconfigurationException(
            f"{what}: all ranks must come to it, since each waits for all others. Got {got}. {fix}"
        )

    def send_flags(self, bits: int) -> None:
        """Send this rank's flags, without waiting.

        Raises:
            RankFailedError: If a rank failed before.
        """
        self._check()
        if self._shared is not None:
            self._shared.send(bits)
            return
        self._flags.fill_(bits | _FLAGS)
        self._on_way = self._send(self._flags)

    def receive_flags(self) -> int:
        """Return the flags that any rank sent.

        Raises:
            RankFailedError: If one failed in place of sending some.
        """
        if self._shared is None:
            found = self.receive(self._on_way, self._flags)
            if found & _MEETS:
                self._raise_apart("the flags of a batch", _FIX, self._told())
            return found & _FAILED - 1
        try:
            return self._shared.receive(self._look)
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
                    raise too_late(name, timeout or 0.0, missing) from None
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
        own["exit"] = _exit_code(error)
        try:
            first = json.loads(self._store.compare_set(_RECORD, "", json.dumps(own)))
        except RuntimeError:  # the rank that holds the store is gone
            first = own
        if self._shared is not None:
            self._shared.close()
        while self._sent < first["until"]:
            self._last.append(self._send(torch.tensor([_FAILED])))
        self._failure = self._failure or self._described(first)
        if first["rank"] != self._rank and follows(error):
            code = first["exit"]  # what ends the program where it is one process ends it on all ranks
            if code is not None:
                return KeyboardInterrupt() if code == _INTERRUPTED else SystemExit(code)
            return self._failure
        if hasattr(error, "add_note"):  # Python 3.11; a traceback shows it below the error
            error.add_note(f"On rank {self._rank}, {where}.")
        return error

    def _lost(self, where: str, error: BaseException) -> BaseException:
        """Return an error as it is, or for one of a wait without an end one that says where the ranks are."""
        if isinstance(error, LateError):
            return LateError(f"{error} {self._places(where)}")
        if "/gloo/" not in str(error):
            return error
        gone = f"rank {1 - self._rank}" if self._size == 2 else "another rank"
        if "imed out" in str(error) or self._heard_of_late():
            text = (
                f"it must come to each exchange within the strategy's timeout. {self._places(where)} Call what "
                "exchanges on every rank, torch.distributed too, or allow more by DDPStrategy(timeout=...)."
            )
        elif self._learn() is not None:
            return error
        else:
            text = (
                f"it must run as long as rank {self._rank}. Got the end of its connection in {where}, and no error of "
                "its own. Look at what it wrote, and in the system's log whether it was killed."
            )
        lost = RankFailedError(f"{gone}: {text}")
        lost.__cause__ = error
        return lost

    def _heard_of_late(self) -> bool:
        """Return whether another rank's time is up, where its connection ended: gloo closes it then."""
        until = time.monotonic() + _LOOK
        while time.monotonic() < until and self._learn() is None:
            with suppress(RuntimeError):  # the rank that holds the store is gone
                if any(self._store.check([f"late/{rank}"]) for rank in range(self._size)):
                    return True
            if self._shared is not None and self._shared.gone():
                break
            time.sleep(0.02)
        return False

    def _places(self, where: str) -> str:
        """Return where each rank is whose time is up; ranks that wait for one another begin at about the same time."""
        until, found = time.monotonic() + _TOGETHER, {self._rank: where}
        with suppress(RuntimeError):  # the rank that holds the store is gone
            self._store.set(f"late/{self._rank}", where)
            while len(found) < self._size and time.monotonic() < until:
                time.sleep(0.02)
                keys = {rank: f"late/{rank}" for rank in range(self._size) if rank not in found}
                found |= {rank: self._store.get(key).decode() for rank, key in keys.items() if self._store.check([key])}
        places = (f"rank {rank} in {found.get(rank, 'code that did not end')}" for rank in range(self._size))
        return f"Got {'; '.join(places)}."

    def leave(self) -> None:
        """Take part no more."""
        if self._shared is not None:
            self._shared.close()

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

    def _look(self) -> None:
        """Raise the first failure of a rank, if there is one."""
        if (failure := self._learn()) is not None:
            raise failure

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
            f"rank {rank}, {first['where']}: it failed, so rank {self._rank} cannot go on. Got {got}. "
            f"Look at what rank {rank} wrote; the next run begins when every rank begins it.",
        )


def _caller() -> str:
    """Return which module of the core exchanges, so that nobody's exchange is taken for another one's.

    All else counts as one: ranks may come to an exchange of the user's from several places.
    """
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        frame = frame.f_back
    name: str = frame.f_globals.get("__name__", "")
    return name if name.startswith("lt_core.") else "your code"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _exit_code(error: BaseException) -> int | None:
    """Return the exit code of a program that an error ends without being reported, None for any other error."""
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return None


def follows(error: BaseException | None) -> bool:
    """Return whether an error is one of those that a rank gets because another is gone."""
    while error is not None:
        if isinstance(error, RankFailedError | dist.DistError) or "/gloo/" in str(error):
            return True
        error = None if error.__cause__ is error else error.__cause__  # as after `raise error from error`
    return False
