"""Make a call that may never come back, and wait for it no longer than a limit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

__all__ = ["Attempt"]


class Attempt(threading.Thread):
    """Thread that makes one call; who waits for it may go on before it is over.

    Args:
        call: The call to make.
        name: The thread's name.

    Attributes:
        error: What the call raised, once it is over.
    """

    def __init__(self, call: Callable[[], Any], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._call, self._context = call, copy_context()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Make the call and keep what it raises."""
        try:
            self._context.run(self._call)
        except BaseException as error:
            self.error = error

    def within(self, seconds: float) -> bool:
        """Return whether the call was over in time.

        Args:
            seconds: How long to wait.

        Raises:
            BaseException: What the call raised in that time.
        """
        self.start()
        self.join(seconds)
        if not self.is_alive() and self.error is not None:
            raise self.error
        return not self.is_alive()
