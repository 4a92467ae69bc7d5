"""Read what a ``devices=`` flag asks for, before it is known which devices there are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from lt_interface import Problem

__all__ = ["chosen", "read", "refusal"]


def refusal(spec: object, rule: str, got: str = "", fix: str = "") -> ValueError:
    """Return the error of a ``devices=`` flag.

    Args:
        spec: The flag as it was written.
        rule: What must hold.
        got: The offending value, where the flag does not show it.
        fix: A whole sentence that says what to write.
    """
    return ValueError(str(Problem(f"Trainer(devices={spec!r})", rule, got, fix)))


def read(spec: int | str | Sequence[int]) -> int | str | list[int]:
    """Return a count (-1 for all), distinct indices, ``"auto"``, or a text with a hyphen as it is.

    Args:
        spec: The flag.

    Raises:
        ValueError: If it names no device, or one twice.
    """
    asked: Any = spec
    if isinstance(spec, str):
        text = spec.strip()
        if text == "auto" or (re.match(r"[A-Za-z]+-", text) and not text.endswith(",")):
            return text
        if re.fullmatch(r"-?\d{1,9}", text, re.ASCII):
            asked = int(text)
        elif re.fullmatch(r"\d{1,9}(\s*,\s*\d{1,9})*,?", text, re.ASCII):
            asked = [int(part) for part in text.split(",") if part.strip()]
    if _is_whole(asked) and (asked > 0 or asked == -1):
        return int(asked)
    several = isinstance(asked, Sequence) and not isinstance(asked, (str, bytes))
    if several and asked and all(_is_whole(i) and i >= 0 for i in asked) and len(set(asked)) == len(asked):
        return [int(i) for i in asked]
    rule = 'this must be a number of devices, -1 for all, distinct indices or "auto"'
    raise refusal(spec, rule, fix="Write devices=1.")


def chosen(spec: int | str | Sequence[int], asked: int | str | list[int], names: Sequence[str]) -> list[int]:
    """Return the indices that a count, a list or ``"auto"`` means where devices of these names are there.

    Args:
        spec: The flag, for the message.
        asked: What `read` returned.
        names: The devices' names, such as ``"cuda:0"``; their places are their indices.

    Raises:
        ValueError: If a device is not there, or the text is no known one.
    """
    there = f"{len(names)} here: {', '.join(names)}" if names else "none here"
    if isinstance(asked, str) and asked != "auto":
        raise refusal(spec, 'this is no number of devices, no list of indices and not "auto"', fix="Write devices=1.")
    if not names:
        raise refusal(spec, "no such device can be used", there, 'Write accelerator="cpu".')
    if asked in ("auto", -1):
        return list(range(len(names)))
    fix = "Write devices=1." if len(names) == 1 else f"Write devices={len(names)}, or fewer."
    if isinstance(asked, int):
        if asked > len(names):
            raise refusal(spec, "more devices are asked for than there are", there, fix)
        return list(range(asked))
    assert isinstance(asked, list)
    lost = [i for i in asked if i >= len(names)]
    if lost:
        rule = f"there is no device of index {', '.join(map(str, lost))}"
        raise refusal(spec, rule, there, "Indices count from 0.")
    return asked


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
