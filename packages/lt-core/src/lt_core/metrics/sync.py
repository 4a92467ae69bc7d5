"""Reduce logged values over ranks: all at once, in one order, after checking that all ranks have the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lt_interface.errors import MisconfigurationException, Problem

__all__ = ["Part", "sync_parts"]


class Part(NamedTuple):
    """One rank's share of one value.

    Attributes:
        key: The value's name, the same on every rank.
        op: ``"mean"``, ``"sum"``, ``"min"`` or ``"max"``.
        group: The processes to reduce over; None for those that see different samples.
        total: The weighted sum, or the value.
        weight: The sum of the weights.
    """

    key: str
    op: str
    group: Any
    total: float
    weight: float


def sync_parts(parts: Sequence[Part], collectives: Any, world_size: int, device: Any) -> dict[str, float]:
    """Return each value over all ranks, with one collective for each operation and group.

    Every rank must call this equally often, with or without parts.

    Raises:
        MisconfigurationException: On every rank, if the ranks do not have the same values.
    """
    ordered = sorted(parts, key=lambda part: (part.key, part.op))
    _check_same_keys([f"{part.key} ({part.op})" for part in ordered], collectives, world_size)
    found: dict[str, float] = {}
    for group in {id(part.group): part.group for part in ordered}.values():
        for op in ("sum", "min", "max"):
            chosen = [p for p in ordered if p.group is group and (p.op == op or (op == "sum" and p.op == "mean"))]
            if chosen:
                found.update(_reduced(chosen, op, group, collectives, device))
    return found


def _reduced(parts: list[Part], op: str, group: Any, collectives: Any, device: Any) -> dict[str, float]:
    numbers = [p.total for p in parts] + ([p.weight for p in parts] if op == "sum" else [])
    kind = torch.device(device or "cpu").type
    vector = torch.tensor(numbers, dtype=torch.float32 if kind == "mps" else torch.float64, device=device)
    total = collectives.reduce(vector, op, "data" if group is None else group).tolist()
    weights = total[len(parts) :] if op == "sum" else [1.0] * len(parts)
    return {p.key: t / w if p.op == "mean" else t for p, t, w in zip(parts, total, weights, strict=False)}


def _check_same_keys(keys: list[str], collectives: Any, world_size: int) -> None:
    """Compare a hash of the keys, and only if it differs the keys themselves.

    Raises:
        MisconfigurationException: Naming ranks and keys.
    """
    mine = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    if not collectives.any(collectives.broadcast_object(mine) != mine):
        return
    of_ranks = [set(collectives.broadcast_object(keys, rank)) for rank in range(world_size)]
    everywhere = set.intersection(*of_ranks)
    lines = [f"rank {r}: {', '.join(sorted(k - everywhere)) or 'none of these'}" for r, k in enumerate(of_ranks)]
    rule = "with sync_dist=True every process must log the same names"
    fix = "Log them on every rank, or leave sync_dist out."
    raise MisconfigurationException(Problem("self.log", rule, "; ".join(lines), fix))
