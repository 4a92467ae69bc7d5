"""Machine with cards, for tests on a machine without: an ``nvidia-smi`` to run, and torch.cuda's answers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

GB = 2**30


@dataclass
class FakeCard:
    """One card, as nvidia-smi shows it.

    Attributes:
        uuid: Its UUID.
        name: The product.
        used: Memory in use, in MB.
        busy: Utilisation in percent, as text: some cards have none.
        mode: Compute mode.
        divided: Whether it is divided into instances (MIG).
    """

    uuid: str
    name: str = "Fake A100"
    used: int = 3
    busy: str = "0"
    mode: str = "Default"
    divided: bool = False


class FakeMachine:
    """Machine with cards.

    Args:
        patch: Undoes all of it at the test's end.
        folder: Where its programs lie.

    Attributes:
        cards: Its cards.
        driver: Version of its driver.
        refusal: What CUDA answers where a process wants a context, or None.
        current: The card that this process chose; None as long as there is no context.
        capability: Compute capability of each card.
        calls: What was asked of CUDA, in order.
        allocated, reserved, peak, others: Memory in bytes.
    """

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.cards = [FakeCard("GPU-aaaa1111"), FakeCard("GPU-bbbb2222")]
        self.driver, self.capability = "570.124.06", (8, 0)
        self.refusal: Exception | None = None
        self.current: int | None = None
        self.calls: list[str] = []
        self.allocated, self.reserved, self.peak, self.others = 2 * GB, 3 * GB, 8 * GB, 0
        self.generator = torch.Generator()
        self._patch, self._folder = patch, folder / "driver"
        self._folder.mkdir()
        for name in [n for n in os.environ if n.startswith(("CUDA_", "TORCHELASTIC_", "SLURM_"))]:
            patch.delenv(name)
        patch.setenv("PATH", str(self._folder), prepend=os.pathsep)
        self.show()
        self._answer()

    def show(self) -> None:
        """Let nvidia-smi list the cards as they are now."""
        rows = [
            ", ".join(
                (str(i), c.uuid, c.name, str(c.used), c.busy, self.driver, c.mode, "Enabled" if c.divided else "[N/A]")
            )
            for i, c in enumerate(self.cards)
        ]
        program = self._folder / "nvidia-smi"
        program.write_text("#!/bin/sh\ncat <<END\n" + "\n".join(rows) + "\nEND\n", encoding="utf-8")
        program.chmod(0o755)

    def seen(self) -> list[FakeCard]:
        """Return the cards that CUDA_VISIBLE_DEVICES leaves."""
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        if named is None:
            return self.cards
        found = ([c for i, c in enumerate(self.cards) if entry in (str(i), c.uuid)] for entry in named.split(","))
        return [card for same in found for card in same]

    def _answer(self) -> None:
        """Put this machine's answers in the place of torch.cuda's."""

        def take(device: Any) -> None:
            self.calls.append(f"set_device {device}")
            if torch.device(device).index >= len(self.seen()):
                raise RuntimeError("CUDA error: invalid device ordinal")
            if self.refusal is not None:
                raise self.refusal
            self.current = torch.device(device).index

        def free() -> None:
            self.calls.append("empty_cache")

        def memory(device: Any = None) -> tuple[int, int]:
            assert self.current is not None
            return 80 * GB - self.reserved - self.others, 80 * GB

        answers: dict[str, Any] = {
            "device_count": lambda: len(self.seen()),
            "is_initialized": lambda: self.current is not None,
            "set_device": take,
            "empty_cache": free,
            "mem_get_info": memory,
            "memory_allocated": lambda device=None: self.allocated,
            "memory_reserved": lambda device=None: self.reserved,
            "max_memory_allocated": lambda device=None: self.peak,
            "reset_peak_memory_stats": lambda device=None: self.calls.append("reset_peak"),
            "get_device_capability": lambda device=None: self.capability,
            "get_device_properties": lambda i: SimpleNamespace(name=self.seen()[i].name, total_memory=80 * GB),
            "get_rng_state": lambda device=None: self.generator.get_state(),
            "set_rng_state": lambda state, device=None: self.generator.set_state(state),
        }
        for name, answer in answers.items():
            self._patch.setattr(torch.cuda, name, answer)
        self._patch.setattr(torch.version, "cuda", "12.8")
