"""Keep the weights of linear layers in 4 or 8 bits with bitsandbytes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn

from lt_accel.precision.one_format import OneFormat, default_format
from lt_accel.precision.packages import require
from lt_interface import Plan, Problem
from lt_interface.errors import choice_problems, raise_problems

__all__ = ["BitsandbytesPrecision"]

_WHERE = "BitsandbytesPrecision"
_MODES = ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "int8-training")


class BitsandbytesPrecision(OneFormat):
    """Precision that keeps the weights of linear layers in 4 or 8 bits, and everything else in 16.

    The quantized weights are frozen (but for ``"int8-training"``): it is for inference, and for training what is
    added to a model, such as low-rank adapters. Weights are quantized as the module moves to its device.

    Args:
        mode: ``"nf4"`` or ``"fp4"`` for 4 bits, with ``-dq`` for quantized constants too; ``"int8"``, or
            ``"int8-training"`` with 16-bit main weights.
        dtype: The format that is computed in; bfloat16 if None, float16 for 8 bits.
        ignore_modules: Names of modules whose linear layers stay as they are, such as ``{"lm_head"}``.

    Raises:
        MissingPackageError: If bitsandbytes is not installed.
        ConfigError: If the mode is none of those.
    """

    name = "bitsandbytes"

    def __init__(self, mode: str, dtype: torch.dtype | None = None, ignore_modules: Iterable[str] = ()) -> None:
        raise_problems(choice_problems(f"{_WHERE}(mode={mode!r})", mode, _MODES))
        require("bitsandbytes", f"{_WHERE}({mode!r})", "bitsandbytes")
        super().__init__(dtype or (torch.float16 if mode.startswith("int8") else torch.bfloat16))
        self.compute_dtype = self.dtype
        self.mode, self.ignore_modules = mode, frozenset(ignore_modules)

    @property
    def forward(self) -> Callable[[], AbstractContextManager[Any]]:  # type: ignore[override]
        """Return what makes the context in which new tensors have the format."""
        return partial(default_format, self.dtype)

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Refuse Apple's GPU."""
        if plan.device_type != "mps":
            return []
        return [Problem(_WHERE, "bitsandbytes needs a CUDA card or a CPU", "mps", 'Write precision="16-true".')]

    def convert(self, module: nn.Module) -> nn.Module:
        """Return the module with its linear layers exchanged, and the rest in the format.

        A linear layer that is used in several places stays the same layer in all.
        """
        made: dict[int, nn.Module] = {}
        for path, parent in list(module.named_modules()):
            for name, layer in list(parent._modules.items()):  # named_children leaves out a second name
                full = f"{path}.{name}" if path else name
                if type(layer) is nn.Linear and not self._ignored(full):
                    if id(layer) not in made:
                        made[id(layer)] = self._quantized(layer)
                    setattr(parent, name, made[id(layer)])
        fixed = {id(p) for layer in made.values() for p in layer.parameters(recurse=False) if not _plain(p)}
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and id(tensor) not in fixed:
                tensor.data = tensor.data.to(self.dtype)
        return module

    def _ignored(self, name: str) -> bool:
        return any(name == given or name.startswith(f"{given}.") for given in self.ignore_modules)

    def _quantized(self, layer: nn.Linear) -> nn.Module:
        bnb = require("bitsandbytes", _WHERE, "bitsandbytes")
        sizes, has_bias = (layer.in_features, layer.out_features), layer.bias is not None
        new: nn.Module
        if self.mode.startswith("int8"):
            trains = self.mode == "int8-training"
            new = bnb.nn.Linear8bitLt(
                *sizes, bias=has_bias, has_fp16_weights=trains, threshold=0.0 if trains else 6.0, device="meta"
            )
            new.weight = bnb.nn.Int8Params(
                layer.weight.detach().to(torch.float16 if trains else layer.weight.dtype),
                requires_grad=trains,
                has_fp16_weights=trains,
            )
        else:
            kind, _, double = self.mode.partition("-")
            options = {"quant_type": kind, "compress_statistics": bool(double)}
            new = bnb.nn.Linear4bit(*sizes, bias=has_bias, compute_dtype=self.dtype, device="meta", **options)
            new.weight = bnb.nn.Params4bit(layer.weight.detach(), requires_grad=False, **options)
        if has_bias:
            new.bias = copy.deepcopy(layer.bias)
        return new


def _plain(parameter: nn.Parameter) -> bool:
    return type(parameter) is nn.Parameter
