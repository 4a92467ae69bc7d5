"""The processor as an accelerator."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch

from lt_core.config.parsers import FlagError, devices

__all__ = ["CPUAccelerator"]


class CPUAccelerator:
    """The processor as an accelerator: one device is one process, not one core."""

    name = "cpu"
    kind = "cpu"
    priority = 0

    def is_available(self) -> bool:
        """Return True: there is always a processor."""
        return True

    def device_count(self) -> int:
        """Return 1: torch uses all cores from one process."""
        return 1

    def parse_devices(self, spec: int | str | Sequence[int]) -> list[int]:
        """Return the indices of the processes that ``devices=`` asks for.

        Args:
            spec: A positive number of processes, such a number as text, ``"auto"``, or
                a list of distinct indices.

        Raises:
            ValueError: If it is none of these.
        """
        try:
            parsed = devices(spec)
        except FlagError:
            raise ValueError(_wrong(spec)) from None
        if parsed == -1 or (isinstance(parsed, str) and parsed != "auto"):
            raise ValueError(_wrong(spec))
        if isinstance(parsed, tuple):
            return list(parsed)
        return list(range(parsed if isinstance(parsed, int) else self.device_count()))

    def default_strategy(self, devices: int, nodes: int) -> str:
        """Return ``single_device`` for one process in all, else ``ddp``."""
        return "single_device" if devices * nodes == 1 else "ddp"

    def device(self, index: int) -> torch.device:
        """Return the one CPU device, whatever the index."""
        return torch.device("cpu")

    def setup(self, device: torch.device) -> None:
        """Check that the device is a processor; it needs no preparing.

        Raises:
            ValueError: If it is of another kind.
        """
        if device.type != "cpu":
            raise ValueError(
                f'CPUAccelerator: the device must be "cpu". Got "{device}". Choose the accelerator of that device.'
            )

    def stats(self, device: torch.device) -> dict[str, Any]:
        """Return load, memory in bytes and CPU seconds, as far as the operating system gives them."""
        found: dict[str, Any] = {"process_cpu_seconds": time.process_time()}
        if hasattr(os, "getloadavg"):
            found["load_1min"] = os.getloadavg()[0]
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            page = os.sysconf("SC_PAGE_SIZE")
            found["memory_total_bytes"] = page * os.sysconf("SC_PHYS_PAGES")
            found["memory_free_bytes"] = page * os.sysconf("SC_AVPHYS_PAGES")
            try:
                with open("/proc/self/statm", encoding="ascii") as statm:
                    found["process_rss_bytes"] = page * int(statm.read().split()[1])
            except OSError:  # only Linux has this file
                pass
        return found

    def rng_state(self, device: torch.device) -> Any:
        """Return None: the CPU's generators belong to the process."""
        return None

    def set_rng_state(self, device: torch.device, state: Any) -> None:
        """Do nothing: there is no state but the process's."""

    def teardown(self) -> None:
        """Do nothing: nothing was taken."""


def _wrong(spec: object) -> str:
    return (
        f"Trainer(devices={spec!r}): on the CPU this must be a number of processes, "
        'a list of distinct indices or "auto". Write devices=1.'
    )
