"""Keep objects as they are now, to put them back bit by bit: their attributes, and tensors and generators in these."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lt_core.state import rng

__all__ = ["Kept"]

_LONG = 10_000  # a longer list is copied, and not searched


class Kept:
    """Copy of what objects hold: their attributes, and all that lies in lists, dicts and sets there.

    Objects in them are kept only where they are among the owners, too. Copies of tensors lie on the CPU, so that a
    device has the memory that it had.

    Args:
        owners: The objects.
        deep: Whether contents are kept, and not only which object each attribute is.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> before, kept = layer.weight.tolist(), Kept([layer])
        >>> _ = torch.nn.init.zeros_(layer.weight)
        >>> kept.restore()
        >>> layer.weight.tolist() == before
        True
    """

    def __init__(self, owners: Iterable[Any], deep: bool = True) -> None:
        self._containers: dict[int, tuple[Any, Any]] = {}
        self._tensors: dict[int, _KeptTensor] = {}
        self._arrays: dict[int, tuple[Any, Any]] = {}
        self._generators: dict[int, tuple[Any, Any]] = {}
        for attributes in (getattr(owner, "__dict__", None) for owner in owners):
            if deep:
                self._keep(attributes)
            elif attributes is not None:
                self._containers[id(attributes)] = attributes, dict(attributes)

    def _keep(self, thing: Any) -> None:
        if isinstance(thing, Tensor):
            lazy = torch.nn.parameter.is_lazy(thing)
            if id(thing) not in self._tensors and not (lazy or thing.is_meta or thing.is_inference()):
                self._tensors[id(thing)] = _KeptTensor(thing)
        elif isinstance(thing, np.ndarray):
            self._arrays.setdefault(id(thing), (thing, thing.copy()))
        elif rng.is_generator(thing):
            self._generators.setdefault(id(thing), (thing, rng.generator_state(thing)))
        elif isinstance(thing, tuple):
            self._keep_items(thing)
        elif isinstance(thing, list | dict | set | deque) and id(thing) not in self._containers:
            self._containers[id(thing)] = thing, dict(thing) if isinstance(thing, dict) else list(thing)
            self._keep_items(thing.values() if isinstance(thing, dict) else thing)

    def _keep_items(self, items: Any) -> None:
        if len(items) <= _LONG:
            for item in items:
                self._keep(item)

    def restore(self) -> None:
        """Put everything back into the same objects."""
        for container, before in self._containers.values():
            container.clear()
            (container.extend if isinstance(container, list | deque) else container.update)(before)
        for kept in self._tensors.values():
            kept.restore()
        for array, values in self._arrays.values():
            array[...] = values
        for generator, state in self._generators.values():
            rng.set_generator_state(generator, state)


class _KeptTensor:
    """Tensor, its values and its gradient's."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._place = tensor, (tensor.device, tensor.dtype, tensor.shape)
        self._trained = tensor.requires_grad
        self._values = tensor.detach().to("cpu", copy=True)
        self._grad = tensor.grad if tensor.is_leaf else None
        self._gradient = None if self._grad is None else self._grad.detach().to("cpu", copy=True)

    def restore(self) -> None:
        tensor = self._tensor
        if (tensor.device, tensor.dtype, tensor.shape) == self._place:
            tensor.detach().copy_(self._values)
        else:  # moved, or in another number format
            tensor.data = self._values.to(self._place[0])
        if tensor.is_leaf:
            tensor.requires_grad_(self._trained)
            if self._grad is not None and self._gradient is not None:
                self._grad.detach().copy_(self._gradient)
            tensor.grad = self._grad
