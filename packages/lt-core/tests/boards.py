"""Accelerator of boards that are the CPU by another name, with every ability that an accelerator may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest
import torch

from lt_core.builtin.cpu import CPUAccelerator
from lt_interface import Plan, Problem, registry


class Boards(CPUAccelerator):
    """Boards, as many as a test wants.

    Attributes:
        count: How many there are.
        lacking: Why none can be used.
        sentences: Its advice.
        torn_down: Called when the device is given back.
        forked: Whether a launcher that forks was asked about.
    """

    name = "boards"
    kind = "gpu"
    priority = 30
    count: ClassVar[int] = 2
    lacking: ClassVar[Problem | None] = None
    sentences: ClassVar[tuple[str, ...]] = ()
    torn_down: ClassVar[Callable[[], None] | None] = None
    forked: ClassVar[list[bool]] = []

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count

    def parse_devices(self, spec: int | str | Sequence[int]) -> list[int]:
        if spec == "the-second":
            return [1]
        return super().parse_devices(spec)

    def device(self, index: int) -> torch.device:
        return torch.device("cpu", index)

    def teardown(self) -> None:
        if Boards.torn_down is not None:
            Boards.torn_down()

    def problems(self, plan: Plan, forks: bool) -> Sequence[Problem]:
        self.forked.append(forks)
        wide = plan.precision == "64-true"
        return [Problem("Trainer(precision='64-true')", "a board has 32 bits")] if wide else []

    def describe(self, index: int) -> str:
        return f"boards:{index}"

    def missing(self) -> Problem | None:
        return self.lacking

    def advice(self, device: torch.device, plan: Plan) -> Sequence[str]:
        return self.sentences

    def explain(self, error: BaseException, device: torch.device, owners: Mapping[str, Mapping[str, Any]]) -> str:
        if not isinstance(error, MemoryError):
            return ""
        return "\n".join(f"{owner}: {', '.join(sorted(tensors))}" for owner, tensors in owners.items())


def install(patch: pytest.MonkeyPatch, **changes: Any) -> type[Boards]:
    """Install the boards beside the built-in accelerators until the test ends, and return their class."""
    patch.setattr(Boards, "forked", [])
    for name, value in changes.items():
        patch.setattr(Boards, name, value)
    cpu = registry._scan()["lt.accelerators"]["cpu"]
    point = EntryPoint("boards", "boards:Boards", "lt.accelerators")
    patch.setitem(registry._scan(), "lt.accelerators", {"cpu": cpu, "boards": (point,)})
    return Boards
