"""Keep the k best of scored things. Pure functions over a mapping from name to score."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import SupportsFloat, TypeVar

__all__ = ["accepts", "best_of", "insert", "worst_of"]

S = TypeVar("S", bound=SupportsFloat)


def _key(score: SupportsFloat, mode: str) -> float:
    """Return the score so that less is better; NaN is as bad as can be."""
    value = float(score)
    if math.isnan(value):
        return math.inf
    return value if mode == "min" else -value


def best_of(scores: Mapping[str, S], mode: str) -> str:
    """Return the name with the best score, the oldest of equals; an empty string if there is none."""
    return min(scores, key=lambda name: _key(scores[name], mode), default="")


def worst_of(scores: Mapping[str, S], mode: str) -> str:
    """Return the name with the worst score, the oldest of equals; an empty string if there is none."""
    return max(scores, key=lambda name: _key(scores[name], mode), default="")


def accepts(scores: Mapping[str, S], score: SupportsFloat, k: int, mode: str) -> bool:
    """Return whether a new score belongs to the k best; a tie with the worst does not. ``k=-1`` keeps all."""
    if k == -1 or len(scores) < k:
        return True
    return k > 0 and _key(score, mode) < _key(scores[worst_of(scores, mode)], mode)


def insert(scores: MutableMapping[str, S], name: str, score: S, k: int, mode: str) -> dict[str, S]:
    """Add a score in place and return those that had to go, worst first."""
    evicted: dict[str, S] = {}
    scores.pop(name, None)
    while k > 0 and len(scores) >= k:
        worst = worst_of(scores, mode)
        evicted[worst] = scores.pop(worst)
    scores[name] = score
    return evicted
