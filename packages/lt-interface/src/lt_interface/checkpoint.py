"""Say how a tree of values becomes a file and comes back."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

__all__ = ["CheckpointIO"]


@runtime_checkable
class CheckpointIO(Protocol):
    """Write and read checkpoints.

    A save is atomic and durable: a reader sees the old file or the new one, whatever
    moment the process dies at. Reading never runs code found in the file.

    Attributes:
        collective: Whether every rank must call ``save`` and ``load``.
    """

    collective: bool

    def save(self, tree: dict[str, Any], path: str) -> None:
        """Write the tree.

        Raises:
            OSError: If the disk refuses; what was there before stays.
            CheckpointError: If a value of the tree can not be kept; the message has its path.
        """
        ...

    def load(self, path: str, into: Any = None) -> dict[str, Any]:
        """Return the tree.

        Raises:
            CheckpointError: If the file is missing, damaged, unsafe or too new.
        """
        ...

    def peek(self, path: str) -> dict[str, Any]:
        """Return the header alone: versions and progress, no tensor read."""
        ...

    def verify(self, path: str) -> None:
        """Check every byte that is covered by a checksum; raise CheckpointError if one is wrong."""
        ...

    def remove(self, path: str) -> None:
        """Delete a checkpoint; one that is not there is no error."""
        ...

    def wait(self) -> None:
        """Return when every save so far is durable; raise what one of them raised."""
        ...
