"""Keep two processes from sending one journal at the same time."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from lt_interface.errors import ConfigError, Problem

__all__ = ["JournalLock"]


# The locks of this process: descriptor and number of holders by path, and whose process that is.
_held: dict[tuple[int, str], list[int]] = {}
_guard = threading.Lock()


def _after_fork_in_child() -> None:
    """Close the copies of the descriptors: a worker that outlives its parent must not keep the locks."""
    global _guard
    _guard = threading.Lock()
    for fd, _ in _held.values():
        with suppress(OSError):
            os.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class JournalLock:
    """Lock ``<journal>.lock``, held while its records are sent.

    The lock belongs to the process, whose parts may hold it together: it goes with a kill, and a forked worker does
    not keep it.

    Args:
        journal: The journal's path.

    Attributes:
        path: The lock's own file.

    Raises:
        ConfigError: On entering, if anybody else holds it; names that process.
    """

    def __init__(self, journal: str | os.PathLike[str]) -> None:
        self._journal, self.path = Path(journal), os.path.realpath(f"{os.fspath(journal)}.lock")

    def acquire(self, alone: bool = False) -> bool:
        """Take the lock; return False if another process has it, or, to be ``alone``, another part of this one."""
        try:
            import fcntl
        except ImportError:  # no such locks here
            return True
        with _guard:
            held = _held.get((os.getpid(), self.path))
            if held is not None:
                held[1] += not alone
                return not alone
            if (fd := self._locked(fcntl)) is None:
                return False
            with suppress(OSError):  # the name of the holder is a courtesy, which a full disk has no room for
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()} {os.uname().nodename}".encode(), 0)
            _held[os.getpid(), self.path] = [fd, 1]
            return True

    def _locked(self, fcntl: Any) -> int | None:
        """Return the descriptor of the locked file; None if another process has it."""
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                if isinstance(error, BlockingIOError):
                    return None
                raise  # a file system without locks
            with suppress(OSError):
                if os.path.samestat(os.fstat(fd), os.stat(self.path)):
                    return fd
            os.close(fd)  # whoever had it took the file away in between, and somebody may hold a new one

    def release(self) -> None:
        """Give it up; the last holder of this process frees it, and takes its file away."""
        with _guard:
            held = _held.get((os.getpid(), self.path))
            if held is None:
                return
            held[1] -= 1
            if not held[1]:
                del _held[os.getpid(), self.path]
                with suppress(OSError):
                    os.unlink(self.path)
                os.close(held[0])

    def refusal(self, where: str, rule: str, fix: str) -> ConfigError:
        """Return the error for one who did not get it."""
        with suppress(OSError, ValueError):
            pid, _, host = Path(self.path).read_text(encoding="utf-8").partition(" ")
            return ConfigError(Problem(where, rule, f"process {int(pid)} on {host}", fix))
        return ConfigError(Problem(where, rule, "another process", fix))

    def __enter__(self) -> JournalLock:
        if not self.acquire(alone=True):
            where = f"replay {str(self._journal.parent)!r}"
            fix = "Wait until it has ended; it sends the records itself."
            raise self.refusal(where, "its run must not be going on", fix)
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()
