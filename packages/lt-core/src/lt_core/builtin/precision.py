"""Precisions of one number format throughout: 32, 64 or 16 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lt_interface import MisconfigurationException, PlainPrecision, Problem

__all__ = ["BFloat16Precision", "DoublePrecision", "FullPrecision", "HalfPrecision"]


FORMATS = {"64-true": torch.float64, "16-true": torch.float16, "bf16-true": torch.bfloat16}
_CAST: dict[torch.dtype, Callable[[nn.Module], nn.Module]] = {
    torch.float64: nn.Module.double,
    torch.float16: nn.Module.half,
    torch.bfloat16: nn.Module.bfloat16,
}


class FullPrecision(PlainPrecision):
    """Formats as the user made them: 32 bits, unless they chose otherwise."""

    name = "32-true"


class _OneFormat(PlainPrecision):
    """Parameters, inputs and new tensors in one floating-point format."""

    converts_batch = True

    def __init__(self, name: str) -> None:
        self.name, self.dtype = name, FORMATS[name]

    @property
    def forward(self) -> Callable[[], AbstractContextManager[Any]]:  # type: ignore[override]
        """Return what makes the context in which new floating-point tensors have the format."""
        return self._as_default

    def init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new floating-point tensors have the format."""
        return self._as_default()

    def convert(self, module: nn.Module) -> nn.Module:
        """Return the module with its floating-point parameters and buffers in the format."""
        # Not module.to(dtype): that turns complex tensors into real ones.
        return _CAST[self.dtype](module)

    def convert_batch(self, batch: Any) -> Any:
        """Return the batch with its floating-point tensors in the format."""
        from lt_core.data.nested import apply_to_collection

        return apply_to_collection(batch, Tensor, lambda t: t.to(self.dtype) if t.is_floating_point() else t)

    @contextmanager
    def _as_default(self) -> Iterator[None]:
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


class DoublePrecision(_OneFormat):
    """64 bits throughout."""

    def __init__(self) -> None:
        super().__init__("64-true")


class HalfPrecision(_OneFormat):
    """16 bits throughout, without a loss scale.

    Args:
        precision: ``"16-true"``, 5 bits of exponent, or ``"bf16-true"``, 8.

    Raises:
        MisconfigurationException: If it is neither.
    """

    def __init__(self, precision: str = "16-true") -> None:
        if precision not in ("16-true", "bf16-true"):
            rule, fix = 'this must be "16-true" or "bf16-true"', 'Write "bf16-true".'
            raise MisconfigurationException(Problem("HalfPrecision", rule, repr(precision), fix))
        super().__init__(precision)


class BFloat16Precision(HalfPrecision):
    """16 bits with 8 of exponent."""

    def __init__(self) -> None:
        super().__init__("bf16-true")
