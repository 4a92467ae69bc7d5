"""Word the parser's errors in one line."""

from __future__ import annotations

from typing import Any

__all__ = ["one_line"]


def one_line(parser: Any, message: str) -> str:
    return message
