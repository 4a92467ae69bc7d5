"""Reduce logged values over ranks: all at once, in one order, after checking that all ranks have the same ones.

Two collectives a flush: one of fixed size that compares what the ranks have, before anything whose size depends on it,
and one that carries all values of a group, whatever their operations. Where ranks have other names, a third says which,
and who lacks one takes part with nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch

from lt_interface.errors import MisconfigurationException, Problem

__all__ = ["NEUTRAL", "Part", "sync_parts"]

_Key = tuple[str, str, bool]  # name, operation, whether all ranks take part with a value
NEUTRAL = {"mean": 0.0, "sum": 0.0, "min": math.inf, "max": -math.inf}


class Part(NamedTuple):
    """One rank's share of one value.

    Attributes:
        key: The value's name, the same on every rank.
        op: ``"mean"``, ``"sum"``, ``"min"`` or ``"max"``.
        group: The processes to reduce over; None for those that see different samples.
        total: The weighted sum, or the value.
        weight: The sum of the weights.
        place: What makes a slot for it on a rank that lacks one.
    """

    key: str
    op: str
    group: Any
    total: float
    weight: float
    place: Any


def sync_parts(
    parts: Sequence[Part], collectives: Any, device: Any, objects: Sequence[str] = ()
) -> tuple[dict[str, float], list[Any]]:
    """Return each value over all ranks that have it, and the places of those that this rank lacks.

    Every rank must call this equally often, with or without parts.

    Args:
        parts: This rank's shares.
        collectives: The exchange.
        device: Where tensors for the exchange are made.
        objects: Names of metric objects that will exchange values by themselves next: all ranks must have them.

    Raises:
        MisconfigurationException: On every rank, if one lacks a metric object or a value for a group of ranks, or they
            reduce a value in other ways.
    """
    ordered, lacking = sorted(parts, key=lambda part: part.key), []
    keys = [(p.key, p.op, p.group is None) for p in ordered] + [(n, "metric object", False) for n in sorted(objects)]
    if not _same_everywhere(keys, collectives, device):
        lacking = _lacking(keys, [part.place for part in ordered], collectives)
        ordered = sorted([*ordered, *lacking], key=lambda part: part.key)
    found: dict[str, float] = {}
    for group in {id(part.group): part.group for part in ordered}.values():
        found.update(_reduced([p for p in ordered if p.group is group], group, collectives, device))
    return found, [part.place for part in lacking]


def _reduced(parts: list[Part], group: Any, collectives: Any, device: Any) -> dict[str, float]:
    """Return the values of one group: gathered, since one collective then serves all operations."""
    numbers = torch.tensor([[p.total for p in parts], [p.weight for p in parts]], dtype=torch.float64)
    mine = numbers.view(torch.uint8).to(device)  # as bytes, which every device can hold
    every = collectives.all_gather(mine, "data" if group is None else group).cpu().view(torch.float64)
    every = every.reshape(-1, 2, len(parts))
    totals, weights = every[:, 0], every[:, 1].sum(0)
    by_op = {"sum": totals.sum(0), "mean": totals.sum(0) / weights, "min": totals.amin(0), "max": totals.amax(0)}
    return {p.key: float(by_op[p.op][i]) for i, p in enumerate(parts) if weights[i]}  # none: the group has no value


def _same_everywhere(keys: list[_Key], collectives: Any, device: Any) -> bool:
    """Return on every rank whether all ranks have the same keys: the largest hash is then the smallest too."""
    digest = hashlib.sha256(repr(keys).encode()).digest()
    halves = [int.from_bytes(digest[i : i + 3], "big") for i in (0, 3, 6)]
    mine = torch.tensor([*halves, *(-h for h in halves)], dtype=torch.int64, device=device)
    largest = collectives.reduce(mine, "max", "all").tolist()
    return all(high == -low for high, low in zip(largest[:3], largest[3:], strict=True))


def _lacking(keys: list[_Key], places: list[Any], collectives: Any) -> list[Part]:
    """Return a part without weight for each value that other ranks have and this one lacks.

    Raises:
        MisconfigurationException: On every rank, if nothing can stand for what one lacks; it names that.
    """
    of_ranks = collectives.gather_object((keys, places))
    every = {key: place for theirs, there in of_ranks for key, place in zip_longest(theirs, there)}
    absent = {key: [r for r, (theirs, _) in enumerate(of_ranks) if key not in theirs] for key in every}
    if all(by_all for (_, _, by_all), ranks in absent.items() if ranks) and len({k[0] for k in every}) == len(every):
        return [Part(k[0], k[1], None, NEUTRAL[k[1]], 0.0, every[k]) for k in every if k not in keys]
    got = "; ".join(f"{name} ({op}) not on ranks {ranks}" for (name, op, _), ranks in absent.items() if ranks)
    rule = "of metric objects and sync_dist_group, every process must log the same names, and each in one way"
    raise MisconfigurationException(Problem("self.log", rule, got, "Log them on every rank, or leave sync_dist out."))
