"""Compute in 16 bits where it is safe, with weights in 32."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lt_interface import PlainPrecision

__all__ = ["BFloat16MixedPrecision"]


class BFloat16MixedPrecision(PlainPrecision):
    """Precision that runs each step under autocast to bfloat16; weights, gradients and optimizer stay in 32 bits.

    bfloat16 has the range of 32-bit floats, so that no loss is scaled and no step skipped.
    Works on the CPU as on a GPU.

    Args:
        device: The kind of device to cast on, such as ``"cuda"``; None for the one that the
            module lies on.
    """

    name = "bf16-mixed"

    def __init__(self, device: str | torch.device | None = None) -> None:
        self._device_type = None if device is None else torch.device(device).type
        self._module: weakref.ref[nn.Module] | None = None

    def convert(self, module: nn.Module) -> nn.Module:
        """Return the module, untouched."""
        self._module = weakref.ref(module)
        return module

    def forward(self) -> AbstractContextManager[Any]:
        """Return a new autocast context.

        It is made anew for each step, so that weights that were cast before the optimizer
        changed them are never used again.
        """
        return torch.autocast(self.device_type, dtype=torch.bfloat16, cache_enabled=_cache_keeps_gradients())

    @property
    def device_type(self) -> str:
        """Return the kind of device that is cast on."""
        if self._device_type is not None:
            return self._device_type
        module = None if self._module is None else self._module()
        first = None if module is None else next(module.parameters(), None)
        if first is None or first.device.type == "meta":
            return "cpu"
        return first.device.type

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_module": None}


@lru_cache(maxsize=1)
def _cache_keeps_gradients() -> bool:
    """Return whether autocast's cache of cast weights keeps gradient mode and no-gradient mode apart.

    In older versions of torch a weight that is first used under ``no_grad`` is kept without
    its history, and a later use in the same step silently gets no gradient. There, weights
    are cast at every use instead.
    """
    with torch.inference_mode(False), torch.enable_grad():
        weight, x = torch.ones(1, 1, requires_grad=True), torch.ones(1, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=True):
            with torch.no_grad():
                functional.linear(x, weight)
            return functional.linear(x, weight).requires_grad
