"""Compute in 8 bits with NVIDIA's Transformer Engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from lt_accel.precision.one_format import OneFormat, default_format
from lt_accel.precision.packages import require
from lt_interface import MisconfigurationException, Plan, Problem

__all__ = ["TransformerEngineFloat16Precision", "TransformerEnginePrecision"]


class TransformerEnginePrecision(OneFormat):
    """Precision whose linear layers multiply in 8-bit floats under a scaling recipe, with weights in 16 bits.

    Args:
        weights_dtype: The format of weights and inputs.
        recipe: A recipe of Transformer Engine, or the arguments of its ``DelayedScaling`` as a dict, in which
            ``fp8_format`` may be a name such as ``"HYBRID"``; its default if None.
        replace_layers: Whether `torch.nn.Linear` and `torch.nn.LayerNorm` are exchanged for its own; None for: unless
            the module has some of these already.
        fallback_compute_dtype: What everything else is computed in; ``weights_dtype`` if None.

    Raises:
        MissingPackageError: If Transformer Engine is not installed.
        MisconfigurationException: If the recipe names an unknown format.
    """

    name = "transformer-engine"

    def __init__(
        self,
        weights_dtype: torch.dtype = torch.bfloat16,
        recipe: Any = None,
        replace_layers: bool | None = None,
        fallback_compute_dtype: torch.dtype | None = None,
    ) -> None:
        if weights_dtype is torch.float16:
            self.name = "transformer-engine-float16"
        where = f'Trainer(precision="{self.name}")'
        _require("transformer_engine.pytorch", where)
        super().__init__(weights_dtype)
        self.compute_dtype = fallback_compute_dtype
        self.recipe = _recipe(recipe)
        self.replace_layers, self.fallback = replace_layers, fallback_compute_dtype or weights_dtype

    @property
    def forward(self) -> Callable[[], AbstractContextManager[Any]]:  # type: ignore[override]
        """Return what makes the context of a step."""
        return self._computing

    @contextmanager
    def _computing(self) -> Iterator[None]:
        engine = _require("transformer_engine.pytorch", self.name)
        with ExitStack() as stack:
            stack.enter_context(default_format(self.dtype))
            stack.enter_context(torch.autocast("cuda", dtype=self.fallback))
            if hasattr(engine, "autocast"):  # the newer name
                stack.enter_context(engine.autocast(enabled=True, recipe=self.recipe))
            else:
                stack.enter_context(engine.fp8_autocast(enabled=True, fp8_recipe=self.recipe))
            yield

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Refuse a device that is no CUDA card."""
        if plan.device_type == "cuda":
            return []
        rule = "8-bit floats need a CUDA card of the generation H100 or newer"
        return [Problem(f'Trainer(precision="{self.name}")', rule, plan.device_type, 'Write precision="bf16-mixed".')]

    def convert(self, module: nn.Module) -> nn.Module:
        """Return the module with its layers exchanged, unless it has such layers already, in the weights' format."""
        engine = _require("transformer_engine.pytorch", self.name)
        ours = tuple(getattr(engine, kind) for kind in ("Linear", "LayerNorm"))
        present = any(isinstance(layer, ours) for layer in module.modules())
        if self.replace_layers or (self.replace_layers is None and not present):
            made: dict[int, nn.Module] = {}
            for parent in list(module.modules()):
                for name, layer in list(parent._modules.items()):  # named_children leaves out a second name
                    if _fits(layer):
                        if id(layer) not in made:
                            made[id(layer)] = _exchanged(layer, engine)
                        setattr(parent, name, made[id(layer)])
        casts = {torch.float16: nn.Module.half, torch.bfloat16: nn.Module.bfloat16}
        return casts.get(self.dtype, nn.Module.float)(module)


class TransformerEngineFloat16Precision(TransformerEnginePrecision):
    """Transformer Engine with weights in float16."""

    def __init__(self) -> None:
        super().__init__(torch.float16)


def _require(module: str, where: str) -> Any:
    return require(module, where, "transformer-engine", "--no-build-isolation ")


def _fits(layer: nn.Module | None) -> bool:
    """Return whether a layer has a counterpart: 8-bit products need sizes that are multiples of 16."""
    if type(layer) is nn.LayerNorm:
        return len(layer.normalized_shape) == 1 and layer.elementwise_affine
    return type(layer) is nn.Linear and layer.in_features % 16 == 0 and layer.out_features % 16 == 0


def _exchanged(layer: Any, engine: Any) -> nn.Module:
    """Return a layer of the engine that holds the same parameters."""
    new: nn.Module
    if isinstance(layer, nn.Linear):
        new = engine.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    else:
        new = engine.LayerNorm(layer.normalized_shape[0], eps=layer.eps)
    own = dict(new.named_parameters())
    for name, parameter in layer.named_parameters():
        if name in own:
            setattr(new, name, parameter)
    return new


def _recipe(given: Any) -> Any:
    """Return a recipe made from a dict, or the given one.

    Raises:
        MisconfigurationException: If its format has no such name.
    """
    if not isinstance(given, Mapping):
        return given
    recipes = _require("transformer_engine.common.recipe", "TransformerEnginePrecision")
    arguments = dict(given)
    name = arguments.get("fp8_format")
    if isinstance(name, str):
        if not hasattr(recipes.Format, name):
            rule = "the recipe's fp8_format must be a name such as HYBRID or E4M3"
            raise MisconfigurationException(Problem("TransformerEnginePrecision", rule, repr(name), 'Write "HYBRID".'))
        arguments["fp8_format"] = getattr(recipes.Format, name)
    return recipes.DelayedScaling(**arguments)
