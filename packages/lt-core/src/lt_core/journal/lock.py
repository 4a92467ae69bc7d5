"""Keep two processes from sending one journal at the same time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lt_interface.errors import ConfigError, Problem

__all__ = ["JournalLock"]


class JournalLock:
    """Hold ``<journal>.lock`` while its records are sent.

    The lock belongs to the process: it goes with a kill, and a forked worker does not keep it.

    Args:
        journal: The journal's path.

    Raises:
        ConfigError: On entering, if another process holds it; names that process.
    """

    def __init__(self, journal: str | os.PathLike[str]) -> None:
        self._journal, self._path = Path(journal), f"{os.fspath(journal)}.lock"
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Take the lock; return False if another process has it."""
        try:
            import fcntl
        except ImportError:  # no such locks here
            return True
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            self._fd = None
            return False
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()} {os.uname().nodename}".encode(), 0)
        return True

    def release(self) -> None:
        """Let go of it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> JournalLock:
        if not self.acquire():
            pid, _, host = Path(self._path).read_text(encoding="utf-8").partition(" ")
            where = f"replay {str(self._journal.parent)!r}"
            fix = "Wait until it has ended; it sends the records itself."
            raise ConfigError(Problem(where, "its run must not be going on", f"process {pid} on {host}", fix))
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()
