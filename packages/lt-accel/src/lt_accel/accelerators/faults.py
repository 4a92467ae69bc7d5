"""Report why a card cannot be used, from what CUDA and ``nvidia-smi`` say, and what to do about it."""

from __future__ import annotations

import os

import torch

from lt_accel.accelerators.cards import Card, installed, visible
from lt_interface import Problem

__all__ = ["no_cards", "not_usable"]

# The oldest driver for Linux that each major version of CUDA works with; newer minor versions work with it too.
DRIVERS = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}
_WHERE = "cuda"
_BUILD = "Install a CUDA build of torch: the selector at pytorch.org/get-started has the command."
_NEWER = "Update the driver, or install a build of torch for an older CUDA: pytorch.org/get-started has the command."


def no_cards() -> Problem | None:
    """Return why torch sees no card where the machine has one, or None where it has none."""
    cards = installed()
    if not cards:
        return None
    there = ", ".join(card.name for card in cards)
    if _lacks_cuda():
        rule = "this PyTorch was built without CUDA, and there is a card"
        return Problem(_WHERE, rule, f"torch {torch.__version__}, {there}", _BUILD)
    if not visible(cards):
        got = f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}, {there}"
        return Problem(_WHERE, "CUDA_VISIBLE_DEVICES hides every card", got, "Unset it, or name a card.")
    return _driver_problem(cards) or Problem(_WHERE, "CUDA does not start", there, "Run nvidia-smi, and look at dmesg.")


def not_usable(device: torch.device, error: BaseException) -> Problem:
    """Return what CUDA's refusal of a device means.

    Args:
        device: The device.
        error: What CUDA raised.
    """
    where, text = str(device), str(error)
    if _lacks_cuda():
        return Problem(_WHERE, "this PyTorch was built without CUDA", f"torch {torch.__version__}", _BUILD)
    cards = installed()
    seen = visible(cards)
    card = seen[device.index or 0] if len(seen) > (device.index or 0) else None
    if "forked subprocess" in text:
        rule = "CUDA cannot be used in a forked process once the launching one has used it"
        fix = "Move nothing to a card before the trainer is called, or choose a launcher that does not fork."
        return Problem(where, rule, fix=fix)
    if "too old" in text or "insufficient" in text:
        return _driver_problem(cards) or Problem(
            _WHERE, f"this PyTorch was built for CUDA {torch.version.cuda}, and the driver is older", text, _NEWER
        )
    if card is not None and card.divided:
        rule = "this card is divided into instances (MIG), of which a process uses one"
        fix = "Run nvidia-smi -L and export CUDA_VISIBLE_DEVICES=MIG-..., one of those that it lists."
        return Problem(where, rule, card.name, fix)
    if "busy or unavailable" in text:
        mode = f"compute mode {card.mode}" if card else "a card that is busy"
        fix = 'End that process, or choose another card: devices="auto-idle".'
        return Problem(where, "another process has this card for itself", mode, fix)
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in text:
        got = f"{card.used:.0f} MB in use" if card else "no free memory"
        fix = 'End the processes that nvidia-smi lists, or choose another card: devices="auto-idle".'
        return Problem(where, "other processes have left this card no memory to start in", got, fix)
    if "invalid device ordinal" in text:
        got = f"{torch.cuda.device_count()} cards, CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}"
        return Problem(where, "this process sees no card of this index", got, "Start one process for each card.")
    got = f"{type(error).__name__}: {text.splitlines()[0].rstrip('.') if text else ''}"
    return Problem(where, "CUDA refuses this card", got, "Run nvidia-smi, and look at dmesg.")


def _lacks_cuda() -> bool:
    return torch.version.cuda is None and torch.version.hip is None


def _driver_problem(cards: list[Card]) -> Problem | None:
    """Return that the driver is too old for torch's CUDA, with the version that is needed, or None if it is not."""
    needed = DRIVERS.get((torch.version.cuda or "").partition(".")[0])
    if not cards or needed is None or _numbers(cards[0].driver) >= _numbers(needed):
        return None
    rule = f"this PyTorch was built for CUDA {torch.version.cuda}, which needs driver {needed} or newer"
    return Problem(_WHERE, rule, f"driver {cards[0].driver}", _NEWER)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
