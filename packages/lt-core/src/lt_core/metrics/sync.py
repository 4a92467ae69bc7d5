"""Reduce logged values over ranks: all at once, in one order, after checking that all ranks have the same ones.

Two collectives a flush: one of fixed size that compares what the ranks have, before anything whose size depends on it,
and one that carries all values of a group, whatever their operations. Where ranks have other names, a third says which,
and who lacks one takes part with nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch

from lt_interface.errors import MisconfigurationException, Problem

__all__ = ["Part", "sync_parts"]

_Key = tuple[str, str, bool]  # name, operation, whether all ranks take part with a value
_NEUTRAL = {"mean": 0.0, "sum": 0.0, "min": math.inf, "max": -math.inf}


class Part(NamedTuple):
    """One rank's share of one value.

    Attributes:
        key: The value's name, the same on every rank.
        op: ``"mean"``, ``"sum"``, ``"min"`` or ``"max"``.
        group: The processes to reduce over; None for those that see different samples.
        total: The weighted sum, or the value.
        weight: The sum of the weights.
        place: Returns what makes a slot for it on a rank that lacks one.
    """

    key: str
    op: str
    group: Any
    total: float
    weight: float
    place: Callable[[], Any]


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
        missing = _missing(keys, [part.place() for part in ordered], collectives)
        ordered = sorted([*ordered, *(part for part, _ in missing)], key=lambda part: part.key)
        lacking = [place for _, place in missing]
    found: dict[str, float] = {}
    for group in {id(part.group): part.group for part in ordered}.values():
        found.update(_reduced([p for p in ordered if p.group is group], group, collectives, device))
    return found, lacking


def _reduced(parts: list[Part], group: Any, collectives: Any, device: Any) -> dict[str, float]:
    """Return the values of one group: gathered, since one collective then serves all operations."""
    numbers = torch.tensor([[p.total for p in parts], [p.weight for p in parts]], dtype=torch.float64)
    mine = numbers.view(torch.uint8).to(device)  # as bytes, which every device can hold
    every = collectives.all_gather(mine, "data" if group is None else group).cpu().view(torch.float64)
    every = every.reshape(-1, 2, len(parts))
    totals, weights = every[:, 0], every[:, 1].sum(0)
    by_op = {"sum": totals.sum(0), "mean": totals.sum(0) / weights, "min": totals.amin(0), "max": totals.amax(0)}
    return {p.key: float(by_op[p.op][i]) for i, p in enumerate(parts)}


def _same_everywhere(keys: list[_Key], collectives: Any, device: Any) -> bool:
    """Return on every rank whether all ranks have the same keys: the largest hash is then the smallest too."""
    digest = hashlib.sha256(repr(keys).encode()).digest()
    halves = [int.from_bytes(digest[i : i + 3], "big") for i in (0, 3, 6)]
    mine = torch.tensor([*halves, *(-h for h in halves)], dtype=torch.int64, device=device)
    largest = collectives.reduce(mine, "max", "all").tolist()
    return all(high == -low for high, low in zip(largest[:3], largest[3:], strict=True))


def _missing(keys: list[_Key], places: list[Any], collectives: Any) -> list[tuple[Part, Any]]:
    """Return a part without weight, and the place, of each value that other ranks have and this one lacks.

    Raises:
        MisconfigurationException: On every rank, if nothing can stand for what one lacks; it names that.
    """
    of_ranks = collectives.gather_object((keys, places))
    every = {key: place for theirs, there in of_ranks for key, place in zip_longest(theirs, there)}
    absent = set(every) - set.intersection(*(set(theirs) for theirs, _ in of_ranks))
    if all(by_all for _, _, by_all in absent) and len({key for key, _, _ in every}) == len(every):
        lacking = [key for key in every if key not in keys]
        return [(Part(key, op, None, _NEUTRAL[op], 0.0, dict), every[key, op, True]) for key, op, _ in lacking]
    lines = [
        f"rank {r}: {', '.join(f'{key} ({op})' for key, op, _ in theirs if (key, op, _) in absent) or 'none of these'}"
        for r, (theirs, _) in enumerate(of_ranks)
    ]
    rule = "of metric objects and sync_dist_group, every process must log the same names, and each in one way"
    fix = "Log them on every rank, or leave sync_dist out."
    raise MisconfigurationException(Problem("self.log", rule, "; ".join(lines), fix))
