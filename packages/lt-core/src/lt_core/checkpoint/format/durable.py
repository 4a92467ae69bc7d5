"""Write a file so that a reader sees the old one or the whole new one, whatever moment the process dies at.

The bytes go to a hidden file in the same folder, which is synced, renamed over the target, and the folder is
synced: only then the save counts. Every call of the system goes through this module's `os`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import socket
import stat
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: stray files are left alone there
    fcntl = None  # type: ignore[assignment]

__all__ = ["SUFFIX", "AtomicFile", "remove_strays"]

SUFFIX = ".lt-tmp"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FOREIGN_AGE = 3600.0
_POSIX = os.name == "posix"
_FLAGS = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class AtomicFile:
    """File that appears at its path when the block ends without an error.

    Args:
        path: The target; what is there stays until the new file is durable.
        needed: The bytes that will be written, for the message of a full disk.

    Raises:
        OSError: If the disk refuses; the target is untouched and no other file is left.
    """

    def __init__(self, path: str, needed: int = 0) -> None:
        self.path = os.path.abspath(path)
        self.needed = needed
        self._fd = -1
        self._temporary = ""

    def __enter__(self) -> AtomicFile:
        folder = os.path.dirname(self.path)
        _make_folder(folder)
        remove_strays(folder)
        if os.path.isdir(self.path):
            raise IsADirectoryError(errno.EISDIR, "a folder is in the way of the checkpoint", self.path)
        while True:
            self._temporary = _temporary_name(self.path)
            self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
            try:
                if _claim(self._fd, self._temporary):
                    return self
            except BaseException:
                self._discard()
                raise
            self._close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes."""
        view = memoryview(data).cast("B")
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise self._explained(error) from error

    def rewrite_start(self, data: bytes | bytearray) -> None:
        """Put bytes over those at the start."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.write(data)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._discard()
            return
        try:
            os.fsync(self._fd)
            if not _POSIX:
                self._close()
            os.replace(self._temporary, self.path)
        except BaseException as failure:
            self._discard()
            if isinstance(failure, OSError):
                raise self._explained(failure) from failure
            raise
        self._close()
        sync_folder(os.path.dirname(self.path))

    def _explained(self, error: OSError) -> OSError:
        if error.errno not in _FULL:
            return error
        free = "unknown"
        with contextlib.suppress(OSError):
            free = str(shutil.disk_usage(os.path.dirname(self.path)).free)
        text = f"{os.strerror(error.errno)}: the checkpoint needs {self.needed} bytes, {free} are free"
        return OSError(error.errno, text, self.path)

    def _close(self) -> None:
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._close()  # first: where there is no POSIX, an open file cannot be removed
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable."""
    if not _POSIX:
        return
    descriptor = os.open(folder, os.O_RDONLY | _FLAGS)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that syncs no folders
            raise
    finally:
        os.close(descriptor)


def remove_strays(folder: str) -> None:
    """Remove the hidden files of writers that died; one that is being written is locked and stays."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        names = [entry.path for entry in found if entry.name.startswith(".") and entry.name.endswith(SUFFIX)]
        for name in names:
            with contextlib.suppress(OSError):
                _remove_stray(name)


def _remove_stray(name: str) -> None:
    status = os.lstat(name)
    # Locks may not be seen between machines, so another one's file must also be old.
    here = name.endswith(f".{_host()}{SUFFIX}") or time.time() - status.st_mtime > _FOREIGN_AGE
    if not (stat.S_ISREG(status.st_mode) and here):
        return
    descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | _FLAGS)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name)
    finally:
        os.close(descriptor)


def _claim(descriptor: int, name: str) -> bool:
    """Lock a new hidden file; return False if someone took it for a stray one just before."""
    if fcntl is None:
        return True
    with contextlib.suppress(OSError):  # a file system without locks: then nobody removes strays on it either
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        return os.stat(name).st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _temporary_name(path: str) -> str:
    folder, name = os.path.split(path)
    short = name.encode("utf-8", "surrogateescape")[:80].decode("utf-8", "ignore")
    return os.path.join(folder, f".{short}.{secrets.token_hex(4)}.{_host()}{SUFFIX}")


def _host() -> str:
    kept = "".join(c for c in socket.gethostname() if c.isascii() and (c.isalnum() or c == "-"))
    return kept[:64] or "host"


def _make_folder(folder: str) -> None:
    """Make a folder and those above it, each durable in the one that holds it."""
    path = Path(folder)
    for name in [str(f) for f in (*reversed(path.parents), path) if not os.path.isdir(f)]:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name)
        sync_folder(os.path.dirname(name))
