"""Compute matrix products in 8 bits with torchao."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from lt_accel.precision.mixed import BFloat16MixedPrecision
from lt_accel.precision.packages import require
from lt_interface import Plan, Problem

__all__ = ["Float8Precision"]


class Float8Precision(BFloat16MixedPrecision):
    """Precision whose large linear layers multiply in 8-bit floats, while the rest is as in ``"bf16-mixed"``.

    Weights, gradients and optimizer stay in 32 bits, under the names that they had. It pays for large layers in a
    module that is compiled with `torch.compile`.

    Args:
        recipe: Name of a recipe of torchao: ``"tensorwise"``, ``"rowwise"`` or ``"rowwise_with_gw_hp"``.
        config: A ``torchao.float8.Float8LinearConfig`` in place of a recipe. One with ``emulate=True`` works on any
            device, slowly.
        layers: Says by module and name which linear layers are converted; those whose sizes are multiples of 16
            if None, as the hardware needs it.

    Raises:
        MissingPackageError: If torchao is not installed.
    """

    def __init__(
        self,
        recipe: str = "tensorwise",
        config: Any = None,
        layers: Callable[[nn.Module, str], bool] | None = None,
    ) -> None:
        super().__init__()
        self.name = "float8"
        torchao = require("torchao.float8", 'Trainer(precision="float8")', "float8")
        self.config = torchao.Float8LinearConfig.from_recipe_name(recipe) if config is None else config
        self.layers = layers

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Refuse a device that is no CUDA card, unless the arithmetic is emulated."""
        if plan.device_type == "cuda" or self.config.emulate:
            return []
        fix = 'Write precision="bf16-mixed", or Float8Precision(config=Float8LinearConfig(emulate=True)) for a trial.'
        rule = "8-bit floats need a CUDA card of the generation H100 or newer"
        return [Problem('Trainer(precision="float8")', rule, plan.device_type, fix)]

    def convert(self, module: nn.Module) -> nn.Module:
        """Return the module with its linear layers exchanged; weights and names stay."""
        torchao = require("torchao.float8", "Float8Precision", "float8")
        torchao.convert_to_float8_training(module, config=self.config, module_filter_fn=self.layers or _fits)
        return super().convert(module)


def _fits(layer: nn.Module, name: str) -> bool:
    """Return whether a layer's sizes are multiples of 16."""
    return type(layer) is nn.Linear and layer.in_features % 16 == 0 and layer.out_features % 16 == 0
