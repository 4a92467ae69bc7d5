"""Construct modules without filling their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["NoInit"]

_RANDOM_FILLS = frozenset({Tensor.uniform_, Tensor.normal_})


class NoInit(TorchFunctionMode):
    """Mode that skips ``torch.nn.init`` and random in-place fills, for weights that will be loaded."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Return the tensor itself from an initialiser, and call everything else."""
        kwargs = kwargs or {}
        if func in _RANDOM_FILLS or getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
