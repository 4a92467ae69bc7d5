"""Read weights that another program wrote: a safetensors file without anything of ours."""

from __future__ import annotations

import os
from typing import Any

from lt_core.checkpoint.format.signature import signature_of
from lt_interface.errors import CheckpointError, Problem

__all__ = ["PlainWeights"]


class PlainWeights:
    """Reader of safetensors files of other programs, such as those of model hubs: weights by name, and nothing else.

    A file with any entry of ours in its header is not read: there, a damaged one must not pass for weights.
    """

    def load(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the weights as a checkpoint that was saved with weights only.

        Args:
            path: The file.

        Raises:
            CheckpointError: If it is a file of ours.
            OSError: If it cannot be read; SafetensorError, if it is no such file.
        """
        with _opened(path) as file:
            return {"state_dict": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118 - no dict

    def peek(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the header, see `load`: no progress and no run, and the weights' signature."""
        with _opened(path) as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        progress = {"epoch": 0, "step": 0}
        return {"versions": {}, "progress": progress, "parameters": signature_of(shapes), "keys": ["state_dict"]}


def _opened(path: str | os.PathLike[str]) -> Any:
    from safetensors import safe_open

    file: Any = safe_open(os.fspath(path), framework="pt")
    if any(key.startswith("lt_") for key in file.metadata() or ()):
        raise CheckpointError(Problem(os.fspath(path), "this is no file of another program"))
    return file
