"""Reduce logged values over ranks: all at once, in one order, after checking that all ranks have the same ones.

Two collectives a flush: one of fixed size that compares what the ranks have, before anything whose size depends on it,
and one that carries all values of a group, whatever their operations.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lt_interface.errors import MisconfigurationException, Problem

__all__ = ["Part", "sync_parts"]

_NEUTRAL = {"mean": 0.0, "sum": 0.0, "min": math.inf, "max": -math.inf}


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


def sync_parts(parts: Sequence[Part], collectives: Any, device: Any, objects: Sequence[str] = ()) -> dict[str, float]:
    """Return each value over all ranks.

    Every rank must call this equally often, with or without parts. A rank without any, such as one that had no batch,
    takes part with nothing.

    Args:
        parts: This rank's shares.
        collectives: The exchange.
        device: Where tensors for the exchange are made.
        objects: Names of metric objects that will exchange values by themselves next: all ranks must have them.

    Raises:
        MisconfigurationException: On every rank, if the ranks do not have the same values.
    """
    ordered = sorted(parts, key=lambda part: (part.key, part.op))
    keys = [(part.key, part.op) for part in ordered] + [(name, "metric object") for name in sorted(objects)]
    if not _same_everywhere(keys, collectives, device):
        others = _others(keys, collectives)
        ordered = ordered or [Part(key, op, None, _NEUTRAL[op], 0.0) for key, op in others]
    found: dict[str, float] = {}
    for group in {id(part.group): part.group for part in ordered}.values():
        found.update(_reduced([p for p in ordered if p.group is group], group, collectives, device))
    return found


def _reduced(parts: list[Part], group: Any, collectives: Any, device: Any) -> dict[str, float]:
    """Return the values of one group: gathered, since one collective then serves all operations."""
    numbers = torch.tensor([[p.total for p in parts], [p.weight for p in parts]], dtype=torch.float64)
    mine = numbers.view(torch.uint8).to(device)  # as bytes, which every device can hold
    every = collectives.all_gather(mine, "data" if group is None else group).cpu().view(torch.float64)
    every = every.reshape(-1, 2, len(parts))
    totals, weights = every[:, 0], every[:, 1].sum(0)
    by_op = {"sum": totals.sum(0), "mean": totals.sum(0) / weights, "min": totals.amin(0), "max": totals.amax(0)}
    return {p.key: float(by_op[p.op][i]) for i, p in enumerate(parts)}


def _same_everywhere(keys: list[tuple[str, str]], collectives: Any, device: Any) -> bool:
    """Return on every rank whether all ranks have the same keys: the largest hash is then the smallest too."""
    digest = hashlib.sha256(repr(keys).encode()).digest()
    halves = [int.from_bytes(digest[i : i + 3], "big") for i in (0, 3, 6)]
    mine = torch.tensor([*halves, *(-h for h in halves)], dtype=torch.int64, device=device)
    largest = collectives.reduce(mine, "max", "all").tolist()
    return all(high == -low for high, low in zip(largest[:3], largest[3:], strict=True))


def _others(keys: list[tuple[str, str]], collectives: Any) -> list[tuple[str, str]]:
    """Return the keys that all ranks have that have any.

    Raises:
        MisconfigurationException: On every rank, if they differ, or a rank lacks a metric object; it names them.
    """
    of_ranks = [set(every) for every in collectives.gather_object(keys)]
    having = [values for k in of_ranks if (values := {key for key in k if key[1] in _NEUTRAL})]
    objects = [{key for key in k if key[1] not in _NEUTRAL} for k in of_ranks]
    if having and all(k == having[0] for k in having) and all(k == objects[0] for k in objects):
        return sorted(having[0])
    everywhere = set.intersection(*of_ranks)
    lines = [
        f"rank {r}: {', '.join(f'{key} ({op})' for key, op in sorted(k - everywhere)) or 'none of these'}"
        for r, k in enumerate(of_ranks)
    ]
    rule = "with sync_dist=True, and of metric objects, every process must log the same names"
    fix = "Log them on every rank, or leave sync_dist out."
    raise MisconfigurationException(Problem("self.log", rule, "; ".join(lines), fix))
