"""Take stores of checkpoints whose methods have PyTorch Lightning's names.

Programs that were written for Lightning bring classes with ``save_checkpoint``, ``load_checkpoint`` and
``remove_checkpoint``. They are given the dict that Lightning would give them, in its layout.
"""

from __future__ import annotations

import os
from typing import Any

from lt_core.checkpoint.format.lightning_layout import from_layout, header_of, read_with, to_layout
from lt_core.checkpoint.format.torch_io import TorchCheckpointIO, is_torch_file
from lt_interface import CheckpointError, CheckpointIO, Problem

__all__ = ["as_store"]


def as_store(given: Any) -> Any:
    """Return a store with the methods that the core calls: the given one if it has them itself."""
    save = getattr(type(given), "save", None)
    named = hasattr(type(given), "save_checkpoint") and hasattr(type(given), "load_checkpoint")
    return _NamedStore(given) if named and save in (None, CheckpointIO.save) else given


class _NamedStore:
    """Store that calls another one by Lightning's names.

    Args:
        given: The other one.
    """

    collective = False
    asynchronous = False

    def __init__(self, given: Any) -> None:
        self.given = given

    def save(self, tree: dict[str, Any], path: str | os.PathLike[str]) -> None:
        where = os.path.abspath(path)
        os.makedirs(os.path.dirname(where), exist_ok=True)
        self.given.save_checkpoint(to_layout(tree), where)

    def load(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        return from_layout(self._found(path, None), os.fspath(path))

    def load_trusted(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        return from_layout(self._found(path, False), os.fspath(path))

    def peek(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        if is_torch_file(path):  # no tensor need be read
            return TorchCheckpointIO().peek(path)
        return header_of(self._found(path, None))

    def verify(self, path: str | os.PathLike[str]) -> None:
        if is_torch_file(path):
            TorchCheckpointIO().verify(path)
        else:
            self.load(path)

    def remove(self, path: str | os.PathLike[str]) -> None:
        if os.path.lexists(path):
            self.given.remove_checkpoint(os.fspath(path))

    def wait(self) -> None:
        """Return at once: what is written in the background is its owner's affair."""

    def _found(self, path: str | os.PathLike[str], weights_only: bool | None) -> dict[str, Any]:
        where = os.fspath(path)
        found = read_with(self.given.load_checkpoint, where, weights_only)
        if not isinstance(found, dict):
            rule = f"{type(self.given).__name__}.load_checkpoint must return a dict"
            raise CheckpointError(Problem(where, rule, type(found).__name__))
        return found
