"""Compute in 16 bits where it is safe, with weights in 32."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from lt_accel.precision.scaling import LossScaling
from lt_interface import PlainPrecision, Plan, Problem
from lt_interface.errors import raise_problems

__all__ = ["BFloat16MixedPrecision", "Float16MixedPrecision", "MixedPrecision"]

_FORMATS = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class MixedPrecision(PlainPrecision):
    """Precision that runs each step under autocast to 16 bits; weights, gradients and optimizer stay in 32.

    bfloat16 has the range of 32-bit floats, so that no loss is scaled and no step skipped. float16 has not: its loss
    is multiplied by a scale, gradients are divided by it before anybody looks at them, and a step whose gradients
    overflow is skipped: it is not counted in ``trainer.global_step``, and no scheduler steps.

    Args:
        precision: ``"16-mixed"`` or ``"bf16-mixed"``.
        device: The kind of device to cast on, such as ``"cuda"``; None for the run's.
        scaler: The scaler of ``"16-mixed"``; a new one with torch's settings if None.

    Raises:
        MisconfigurationException: If the precision is neither, the device or the scaler is none, or a scaler is given
            for ``"bf16-mixed"``; all problems at once.
    """

    reduce_dtype = torch.float32

    def __init__(
        self,
        precision: str,
        device: str | torch.device | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        raise_problems(_problems(precision, device, scaler))
        self.name, self.compute_dtype = precision, _FORMATS[precision]
        self.scales = precision == "16-mixed" and (scaler is None or scaler.is_enabled())
        self._device_type = None if device is None else torch.device(device).type
        self._run_type = "cpu"
        self._steps_itself = False  # whether weights may change inside a training step
        self._scaling = None if scaler is None else LossScaling(scaler)

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """Return the scaler; None for ``"bf16-mixed"``, and before a run has begun."""
        return None if self._scaling is None else self._scaling.scaler

    @property
    def device_type(self) -> str:
        """Return the kind of device that is cast on."""
        return self._device_type or self._run_type

    def take_device(self, device: torch.device) -> None:
        """Take the run's device."""
        self._run_type = device.type

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Refuse float16 on a processor, which computes it slowly, unless a scaler was given for it."""
        if self.name == "16-mixed" and self._scaling is None and plan.device_type == "cpu":
            rule, fix = "a CPU has no fast float16", 'Write precision="bf16-mixed".'
            return [Problem('Trainer(precision="16-mixed")', rule, 'accelerator="cpu"', fix)]
        if self._device_type not in (None, plan.device_type):
            rule = "the precision casts on another device than the run's"
            fix = f'Write MixedPrecision({self.name!r}, "{plan.device_type}").'
            return [Problem(f"MixedPrecision({self.name!r}, {self._device_type!r})", rule, plan.device_type, fix)]
        return []

    def convert(self, module: nn.Module) -> nn.Module:
        """Return the module as it is, once it is noted whether it optimizes manually."""
        self._steps_itself = not getattr(module, "automatic_optimization", True)
        return super().convert(module)

    @property
    def forward(self) -> Callable[[], AbstractContextManager[Any]]:  # type: ignore[override]
        """Return what makes an autocast context.

        There is a new one for each step, so that weights that were cast before the optimizer
        changed them are never used again. Under manual optimization they change inside it, by whatever
        hand: there they are cast at every use.
        """
        kept = not self._steps_itself and _cache_keeps_gradients()
        return partial(torch.autocast, self.device_type, dtype=self.compute_dtype, cache_enabled=kept)

    def prepare(self, optimizers: Sequence[Optimizer]) -> Callable[[], None] | None:
        """Look at the optimizers; return what ends a batch, where there is a scale.

        Raises:
            MisconfigurationException: If an optimizer cannot work with a loss scale.
        """
        on_card = self.compute_dtype is torch.bfloat16 and self.device_type == "cuda"
        if on_card and not torch.cuda.is_bf16_supported(including_emulation=False):
            where = 'Trainer(precision="bf16-mixed")'
            warnings.warn(f'{where}: this card only emulates bfloat16. Write precision="16-mixed".', stacklevel=2)
        return self._scaled().prepare(optimizers) if self.scales and optimizers else None

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss that backward sees."""
        return self._scaled().scale(loss) if self.scales else loss

    def unscale(self, optimizer: Optimizer) -> None:
        """Bring the gradients to their true size, once a step.

        Raises:
            MisconfigurationException: If they come from a loss that was not scaled.
        """
        if self.scales:
            self._scaled().unscale(optimizer)

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None, **kwargs: Any) -> bool:
        """Step the optimizer, after unscaling; skip it and return False where a gradient is inf or nan.

        Raises:
            MisconfigurationException: If its gradients come from a loss that was not scaled.
        """
        if self.scales:
            return self._scaled().step(optimizer, closure, **kwargs)
        return super().step(optimizer, closure, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scale; empty where there is none."""
        return {} if self._scaling is None else self._scaling.state_dict()

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take over the state of a scale, torch's own included."""
        if self.scales:
            self._scaled().load_state_dict(state)

    def _scaled(self) -> LossScaling:
        """Return the loss scale, made when it is first needed: a scaler for a card must not be made before its run."""
        if self._scaling is None:
            self._scaling = LossScaling(torch.amp.GradScaler(self.device_type))
        return self._scaling


class BFloat16MixedPrecision(MixedPrecision):
    """Mixed precision with bfloat16; works on the CPU as on a GPU.

    Args:
        device: The kind of device to cast on, such as ``"cuda"``; None for the run's.
    """

    step = PlainPrecision.step  # a frame less

    def __init__(self, device: str | torch.device | None = None) -> None:
        super().__init__("bf16-mixed", device)


class Float16MixedPrecision(MixedPrecision):
    """Mixed precision with float16 and a loss scale, for GPUs.

    Args:
        device: The kind of device to cast on, such as ``"cuda"``; None for the run's.
        scaler: The scaler; a new one with torch's settings if None.
    """

    def __init__(self, device: str | torch.device | None = None, scaler: torch.amp.GradScaler | None = None) -> None:
        super().__init__("16-mixed", device, scaler)


def _problems(precision: Any, device: Any, scaler: Any) -> list[Problem]:
    """Return what is wrong with the arguments of `MixedPrecision`."""
    found = []
    if not isinstance(precision, str) or precision not in _FORMATS:
        rule, fix = 'this must be "16-mixed" or "bf16-mixed"', 'Write "bf16-mixed".'
        found.append(Problem("MixedPrecision", rule, repr(precision), fix))
    try:
        known = device is None or isinstance(device, torch.device) or torch.device(str(device)).type in device
    except (RuntimeError, TypeError):
        known = False
    if not known:
        rule, fix = "the device must be a kind that torch has", 'Write device="cuda", or leave it out.'
        found.append(Problem("MixedPrecision", rule, repr(device), fix))
    if scaler is not None and precision == "bf16-mixed":
        rule, fix = "bfloat16 needs no scaler, since it has the range of 32-bit floats", "Leave scaler= out."
        found.append(Problem('MixedPrecision("bf16-mixed")', rule, type(scaler).__name__, fix))
    elif scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        rule, fix = "the scaler must be a torch.amp.GradScaler", 'Write torch.amp.GradScaler("cuda"), or leave it out.'
        found.append(Problem("MixedPrecision", rule, type(scaler).__name__, fix))
    return found


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
