"""Report what fills a device's memory, and three ways out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["explain_memory", "size"]

Owners = Mapping[str, Mapping[str, Tensor]]
_SHOWN = 5
_REST = "activations and what else a step needs"


def size(count: float) -> str:
    """Return a number of bytes in words.

    Args:
        count: The bytes.
    """
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.1f} MB"


def explain_memory(device: torch.device, owners: Owners, used: int, total: int) -> str:
    """Return who holds a full device's memory, the largest tensors, and three ways out.

    Args:
        device: The device.
        owners: Tensors by owner and name; those on other devices are left out.
        used: Bytes that tensors held when it was full.
        total: Bytes that the device has.
    """
    kept = {
        owner: {name: t.numel() * t.element_size() for name, t in tensors.items() if t.device == device}
        for owner, tensors in owners.items()
    }
    sums = {owner: sum(sizes.values()) for owner, sizes in kept.items()}
    sums[_REST] = max(used - sum(sums.values()), 0)
    largest = sorted(((n, f"{owner}, {name}") for owner, s in kept.items() for name, n in s.items()), reverse=True)
    lines = [
        f"{device} was full: tensors held {size(used)} of {size(total)}: "
        + ", ".join(f"{owner} {size(n)}" for owner, n in sorted(sums.items(), key=lambda item: -item[1]) if n)
        + ".",
        *(["The largest: " + "; ".join(f"{name}, {size(n)}" for n, name in largest[:_SHOWN]) + "."] if largest else []),
        "Ways out: " + " ".join(f"({i}) {way}" for i, way in enumerate(_ways(sums), 1)),
    ]
    return "\n".join(lines)


def _ways(sums: dict[str, int]) -> tuple[str, str, str]:
    """Return three ways out, the one that frees most first."""
    if not sums.get("gradients") and not sums.get("optimizer states"):
        return (
            "Make the batch smaller.",
            'Set precision="bf16-mixed" or "bf16-true".',
            "Return less from the step, or move it to the CPU there.",
        )
    batch = "Halve the batch and set accumulate_grad_batches=2, which trains the same."
    if sums[_REST] >= sum(sums.values()) / 2:
        return (
            batch,
            'Set precision="bf16-mixed", which halves most activations.',
            "Wrap the largest blocks in torch.utils.checkpoint.checkpoint, which computes activations again.",
        )
    return (
        'Set precision="bf16-true", which halves parameters, gradients and states.',
        "Take an optimizer that keeps less: Adam keeps two tensors for each parameter, SGD with momentum one.",
        batch,
    )
