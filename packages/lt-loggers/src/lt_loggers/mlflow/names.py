"""Give metrics and parameters names that MLflow takes, one-to-one."""

from __future__ import annotations

import hashlib
import re

__all__ = ["accepted"]

LONGEST = 250
_REFUSED = re.compile(r"[^\w.\- :/]")
# Also where only what follows it makes it an escape: a refused character, or a slash that is written as one.
_LOOKS_ESCAPED = re.compile(r"_(?=u[0-9a-f]*(?:_|/|[^\w.\- :/])|h[0-9a-f]{16}_$)")


def accepted(name: str) -> str:
    """Return the name itself where MLflow takes it, else one where each refused character is ``_u<hex>_``.

    No two names become one: what looks like an escape is escaped itself. A name that is too long ends in a digest.
    """
    escaped = _LOOKS_ESCAPED.sub("_u5f_", name)
    escaped = _REFUSED.sub(_escape, escaped)
    # MLflow takes names for relative paths that are written in the shortest way.
    parts = escaped.split("/")
    parts = [_dots(part) for part in parts]
    text = parts[0]
    for part in parts[1:]:
        text += f"/{part}" if part and text and not text.endswith("/") else f"_u2f_{part}"
    if text.startswith(".."):  # which would lead out of the run's folder
        text = f"_u2e_{text[1:]}"
    if not text:
        text = "_u_"
    if len(text) > LONGEST:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        text = f"{text[: LONGEST - 20]}_h{digest}_"
    return text


def _escape(match: re.Match[str]) -> str:
    return f"_u{ord(match[0]):x}_"


def _dots(part: str) -> str:
    return "".join(f"_u{ord(letter):x}_" for letter in part) if part in (".", "..") else part
