"""Cards of the machine, as ``nvidia-smi`` lists them: no CUDA context is created, and none is needed.

It is asked only where torch cannot answer: which card is idle, which has a UUID, and why none can be used.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

__all__ = ["Card", "installed", "visible"]

_QUERY = "index,uuid,name,memory.used,utilization.gpu,driver_version,compute_mode,mig.mode.current"
_SECONDS = 20.0


@dataclass(frozen=True)
class Card:
    """One card.

    Attributes:
        index: Its place by PCI bus.
        uuid: Its name for life, ``GPU-`` and 32 digits.
        name: The product.
        used: Memory in use, in MB.
        busy: Utilisation in percent.
        driver: Version of the driver.
        mode: Compute mode; ``"Exclusive_Process"`` is one process at a time.
        divided: Whether it is divided into instances (MIG).
    """

    index: int
    uuid: str
    name: str
    used: float
    busy: float
    driver: str
    mode: str
    divided: bool


def installed() -> list[Card]:
    """Return the cards of this machine, none where the driver does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
    return [_card(row) for row in rows if len(row) == len(_QUERY.split(",")) and row[0].isdigit()]


def visible(cards: list[Card]) -> list[Card]:
    """Return the cards that ``CUDA_VISIBLE_DEVICES`` leaves, in CUDA's order; an unknown entry ends the list, as there.

    Args:
        cards: Those of the machine.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return cards
    left: list[Card] = []
    for entry in (part.strip() for part in named.split(",")):
        same = [c for c in cards if str(c.index) == entry or (entry.startswith("GPU-") and c.uuid.startswith(entry))]
        if len(same) != 1:
            break
        left += same
    return left


def _card(row: list[str]) -> Card:
    index, uuid, name, used, busy, driver, mode, divided = row
    return Card(int(index), uuid, name, _number(used), _number(busy), driver, mode, divided == "Enabled")


def _number(text: str) -> float:
    """Return a figure; 0 for one that the card does not have, which is shown as ``[N/A]``."""
    try:
        return float(text)
    except ValueError:
        return 0.0
