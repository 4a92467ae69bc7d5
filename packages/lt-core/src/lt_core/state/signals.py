"""Turn SIGINT and SIGTERM into a stop at the next boundary; a second one ends the process."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from lt_interface.errors import raised_by

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["SignalWatch", "at_once", "lost_to_signal", "raise_signal"]

_WATCHED = (signal.SIGINT, signal.SIGTERM)
_started: weakref.WeakSet[SignalWatch] = weakref.WeakSet()


class SignalWatch:
    """Watch for signals while a run's loops are running.

    Handlers only set a flag: the loop looks at it at its next boundary. A thread reads the
    raw signal numbers from a pipe that the interpreter's C handler fills, so that a second
    signal ends the process although the main thread is stuck in a long C call. Nothing is
    installed outside the main thread.

    Args:
        notify: Called in the handler; must only set a flag.
        heeds_at_once: Whether a signal is to be heeded when it is received; else `settle` says when.

    Attributes:
        received: The first signal that this process received.
        heeded: The one that ends the run at its next boundary.
        raises: Whether the handler raises what the signal means, as long as no loop runs that has boundaries.
    """

    def __init__(self, notify: Callable[[], None], heeds_at_once: bool = True) -> None:
        self.received: int | None = None
        self.heeded: int | None = None
        self.raises = False
        self._heeds_at_once = heeds_at_once
        self._notify = notify
        self._previous: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._old_fd = -1
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def start(self) -> None:
        """Install the handlers and the watching thread, on the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            return
        read, write = os.pipe()
        os.set_blocking(write, False)
        self._pipe = (read, write)
        for number in _WATCHED:
            self._previous[number] = signal.signal(number, self._handle)
        self._old_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, args=(read,), name="lt-signals", daemon=True)
        self._thread.start()
        _started.add(self)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked child, such as a DataLoader worker: behave as if we were not here
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.received is None:
            self.received = number
            if self._heeds_at_once:
                self.heeded = number
            self._notify()
            if hasattr(signal, "SIGCHLD"):
                # A signal to the whole group ends workers too. The loaders' handler would raise that just anywhere,
                # in the midst of a step or of the teardown; they raise it again where the next batch is awaited.
                self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        previous = self._previous.get(number)
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, frame)
        if self.raises and (error := self.exception(self.heeded)) is not None:
            raise error

    def _watch(self, read: int) -> None:
        seen = 0
        while True:
            try:
                data = os.read(read, 64)
            except OSError:
                return
            if not data or 0 in data:  # stop() closes the pipe behind a zero
                os.close(read)
                return
            if self._old_fd >= 0:
                with suppress(OSError):  # full, or closed since
                    os.write(self._old_fd, data)
            numbers = [n for n in data if n in _WATCHED]
            seen += len(numbers)
            if seen >= 2:
                _leave_terminal()
                os._exit(128 + numbers[-1])

    def stop(self) -> None:
        """Put back what was installed before."""
        if self._pipe is None:
            return
        signal.set_wakeup_fd(self._old_fd)
        for number, previous in self._previous.items():
            if signal.getsignal(number) == (self._handle if number in _WATCHED else signal.SIG_DFL):
                signal.signal(number, previous if previous is not None else signal.SIG_DFL)
        os.write(self._pipe[1], b"\0")
        os.close(self._pipe[1])
        self._pipe = None
        _started.discard(self)
        if self._thread is not None:
            self._thread.join(1.0)  # it holds the run

    def exception(self, number: int | None) -> BaseException | None:
        """Return what the run raises for a signal, None for none."""
        return None if number is None else raised_by(number)


def _leave_terminal() -> None:
    """Show the cursor below a bar that is drawn, past Python's streams, which the main thread may hold locked."""
    for fd in (2, 1):
        with suppress(OSError):
            if os.isatty(fd) and os.environ.get("TERM") != "dumb":
                os.write(fd, b"\x1b[?25h\r\nEnded at once by the second signal.\r\n")
                return


_masks = threading.local()


def _hold() -> None:
    """Keep signals from the forking thread until its child has left the pipe; the parent's other threads take them."""
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED if _started else ())


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _forget_in_child() -> None:
    """Leave the pipe to the parent: a signal to the whole process group must not count once for each worker."""
    for watch in list(_started):
        if watch._pipe is not None:
            signal.set_wakeup_fd(-1)
            os.close(watch._pipe[1])
            watch._pipe = None
    _started.clear()
    _release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget_in_child)


def lost_to_signal(run: Run, error: BaseException) -> BaseException | None:
    """Return what a received signal means if it reached the loader's workers too and ``error`` reports their end."""
    if run.signals is None or not isinstance(error, RuntimeError) or not str(error).startswith("DataLoader worker"):
        return None
    return run.signals.exception(run.signals.received)


@contextmanager
def at_once(run: Run) -> Iterator[None]:
    """Heed a signal at once in what may take long and leaves no step half done; several ranks heed it together, later.

    Args:
        run: The run.

    Raises:
        KeyboardInterrupt: For SIGINT, as for SystemExit, if there is one already.
    """
    watch = run.signals
    if watch is None or run.world.size > 1:
        yield
        return
    raise_signal(run)
    before, watch.raises = watch.raises, True
    try:
        yield
    finally:
        watch.raises = before


def raise_signal(run: Run) -> None:
    """Raise what a signal means that is to be heeded, if there is one.

    Raises:
        KeyboardInterrupt: For SIGINT.
        SIGTERMException: For SIGTERM; it is a SystemExit with 143.
    """
    error = run.signals.exception(run.signals.heeded) if run.signals is not None else None
    if error is not None:
        raise error
