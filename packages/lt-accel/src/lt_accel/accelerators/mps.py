"""GPU of an Apple computer as an accelerator."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lt_accel.accelerators.indices import chosen, read
from lt_accel.accelerators.memory import explain_memory, size
from lt_interface import MisconfigurationException, Plan, Problem

__all__ = ["MPSAccelerator"]

_WHERE = "mps"


class MPSAccelerator:
    """GPU of an Apple computer: one device, in formats of at most 32 bits."""

    name = "mps"
    kind = "gpu"
    priority = 10

    def is_available(self) -> bool:
        """Return whether torch can use the GPU."""
        return torch.backends.mps.is_available()

    def device_count(self) -> int:
        """Return 1 where there is a device, else 0."""
        return int(self.is_available())

    def parse_devices(self, spec: int | str | Sequence[int]) -> list[int]:
        """Return ``[0]`` for a flag that means the one device.

        Args:
            spec: 1, -1, ``"auto"``, ``[0]``, or a number as text.

        Raises:
            ValueError: If it means another number of devices, or there is none.
        """
        return chosen(spec, read(spec), ["mps:0"] * self.device_count())

    def default_strategy(self, devices: int, nodes: int) -> str:
        """Return ``single_device`` for one process in all, else ``ddp``."""
        return "single_device" if devices * nodes == 1 else "ddp"

    def device(self, index: int) -> torch.device:
        """Return the one device."""
        return torch.device("mps", 0)

    def setup(self, device: torch.device) -> None:
        """Check that the device is one of this kind and can be used.

        Raises:
            ValueError: If it is of another kind.
            MisconfigurationException: If there is none.
        """
        if device.type != "mps":
            raise ValueError(
                f'MPSAccelerator: the device must be "mps". Got "{device}". Choose the accelerator of that device.'
            )
        if not self.is_available():
            rule = "there is no GPU that torch can use by MPS"
            raise MisconfigurationException(self.missing() or Problem(_WHERE, rule, fix='Write accelerator="cpu".'))

    def stats(self, device: torch.device) -> dict[str, Any]:
        """Return the memory that tensors and driver hold, and what the system grants, in bytes."""
        return {
            "memory_allocated_bytes": torch.mps.current_allocated_memory(),
            "memory_reserved_bytes": torch.mps.driver_allocated_memory(),
            "memory_total_bytes": torch.mps.recommended_max_memory(),
        }

    def rng_state(self, device: torch.device) -> Any:
        """Return the state of the device's generator, under the accelerator's name."""
        return {self.name: torch.mps.get_rng_state()}

    def set_rng_state(self, device: torch.device, state: Any) -> None:
        """Take over a state of this kind of device; a state of another kind of GPU is left alone."""
        if isinstance(state, Mapping) and self.name in state:
            torch.mps.set_rng_state(state[self.name].cpu())

    def teardown(self) -> None:
        """Give unused memory back to the system."""
        if self.is_available():
            gc.collect()
            torch.mps.empty_cache()

    def problems(self, plan: Plan, forks: bool) -> Sequence[Problem]:
        """Refuse 64 bits, which the device does not have."""
        if not plan.precision.startswith("64"):
            return []
        where = f"Trainer(precision={plan.precision!r})"
        fix = 'Write precision="32-true", or accelerator="cpu".'
        return [Problem(where, "MPS has no numbers of 64 bits", 'accelerator="mps"', fix)]

    def describe(self, index: int) -> str:
        """Return the device's name."""
        return "mps:0"

    def missing(self) -> Problem | None:
        """Return why an Apple computer's GPU cannot be used."""
        if sys.platform != "darwin" or self.is_available():
            return None
        if not torch.backends.mps.is_built():
            fix = "Install torch for arm64 with a Python that is not emulated: choose one at pytorch.org."
            return Problem(_WHERE, "this PyTorch was built without MPS", torch.__version__, fix)
        import platform

        got = f"macOS {platform.mac_ver()[0]} on {platform.machine()}"
        return Problem(_WHERE, "torch needs macOS 14 or newer and a GPU with Metal", got, "Update macOS.")

    def advice(self, device: torch.device, plan: Plan) -> Sequence[str]:
        """Return nothing: there is no choice to make."""
        return []

    def explain(self, error: BaseException, device: torch.device, owners: Mapping[str, Mapping[str, Tensor]]) -> str:
        """Return what fills the memory, where the error is that there is none left."""
        if not isinstance(error, RuntimeError) or "MPS backend out of memory" not in str(error):
            return ""
        used, total = torch.mps.current_allocated_memory(), torch.mps.recommended_max_memory()
        text = explain_memory(device, owners, used, total)
        return f"{text}\nThe driver keeps {size(torch.mps.driver_allocated_memory() - used)} beside it."
