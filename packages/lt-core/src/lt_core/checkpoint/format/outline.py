"""Read the outline of a file of ``torch.save``: plain values and the tensors' shapes, running nothing that it names."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from typing import Any

from lt_core.checkpoint.format.refusal import damaged

__all__ = ["Inert", "outline"]


class Inert:
    """Stand-in for whatever a pickle would make or call: it notes what it is given and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        """Return a stand-in for what the call would."""
        return Inert(*args)

    def _take(self, *given: Any) -> None:
        """Take a state, an item or several."""

    __setstate__ = __setitem__ = append = extend = add = _take

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Return the shape, where it stands for a tensor; None otherwise."""
        if len(self.args) >= 3 and isinstance(self.args[0], Inert) and isinstance(self.args[2], tuple):
            return self.args[2] if all(type(n) is int for n in self.args[2]) else None
        first = self.args[0] if self.args else None
        return first.shape if isinstance(first, Inert) else None  # a parameter is made of a tensor


class _Reader(pickle.Unpickler):
    """Unpickler that makes plain values and ordered dicts, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the ordered dict, which weights are in, or a stand-in."""
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else type("Inert", (Inert,), {})

    def persistent_load(self, pid: Any) -> Any:
        """Return a stand-in for the memory of a tensor."""
        return Inert()


def outline(path: str) -> dict[str, Any]:
    """Return what a file holds, stand-ins in the place of tensors and objects.

    Args:
        path: A zip file of ``torch.save``.

    Raises:
        CheckpointError: If it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            found = _Reader(io.BytesIO(archive.read(name))).load()
        if isinstance(found, dict):
            return found
        rule = "a checkpoint is a dict"
    except Exception as error:  # a damaged pickle raises errors of any kind
        rule = f"the outline of the file cannot be read ({type(error).__name__})"
    raise damaged(path, rule)
