"""Make file names of checkpoints from templates such as ``{epoch}-{val_loss:.2f}``. Pure functions."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from lt_interface.errors import ConfigError, Problem

__all__ = ["DEFAULT_TEMPLATE", "fields", "first_free", "format_name", "template_problem"]

DEFAULT_TEMPLATE = "{epoch}-{step}"
_FIELD = re.compile(r"\{(?P<name>[^{}:]+)(?::(?P<spec>[^{}]*))?\}")


def fields(template: str | None) -> list[str]:
    """Return the metrics that a template names, in order."""
    return [m["name"] for m in _FIELD.finditer(DEFAULT_TEMPLATE if template is None else template)]


def template_problem(template: str | None, where: str) -> Problem | None:
    """Return what is wrong with a template, or None."""
    if template is None:
        return None
    if not isinstance(template, str):
        return Problem(where, "the file name must be a text with fields in braces", repr(template), is_type=True)
    rest = _FIELD.sub("", template)
    if "{" in rest or "}" in rest:
        return Problem(
            where, "a brace in the file name is left open or empty", repr(template), 'Write "{epoch}-{val_loss:.2f}".'
        )
    for match in _FIELD.finditer(template):
        spec = match["spec"] or ""
        if not any(_fits(value, spec) for value in (0, 0.0)):
            return Problem(
                where,
                f"the format of the field {match['name']!r} fits no number",
                repr(spec),
                'Write a number\'s format, such as "{val_loss:.2f}" or "{epoch:02d}".',
            )
    return None


def _fits(value: float, spec: str) -> bool:
    try:
        format(value, spec)
    except ValueError:
        return False
    return True


def format_name(
    template: str | None,
    metrics: Mapping[str, Any],
    *,
    prefix: str = "",
    auto_insert: bool = True,
    join: str = "-",
    equals: str = "=",
) -> str:
    """Return the template with its fields filled in, without folder and extension.

    Args:
        template: Text with fields; None means ``{epoch}-{step}``.
        metrics: Numbers or 0-dim tensors by name; one that is not there counts as 0.
        prefix: Put before the name, joined by ``join``.
        auto_insert: Whether a field shows its name: ``val_loss=0.12`` instead of ``0.12``.
        join: What joins the prefix.
        equals: What stands between a name and its value.

    Raises:
        ConfigError: If a value does not fit its field's format.
    """
    template = DEFAULT_TEMPLATE if template is None else template

    def fill(match: re.Match[str]) -> str:
        name, spec = match["name"], match["spec"] or ""
        value = metrics.get(name, 0)
        value = value.item() if hasattr(value, "item") else value
        try:
            text = format(value, spec)
        except (TypeError, ValueError):
            if not isinstance(value, float) or not value.is_integer() or not _fits(int(value), spec):
                raise ConfigError(
                    Problem(f"ModelCheckpoint(filename={template!r})", f"{name!r} does not fit its format", repr(value))
                ) from None
            text = format(int(value), spec)  # a metric that counts, asked for as {name:d}
        return f"{name}{equals}{text}" if auto_insert else text

    name = _FIELD.sub(fill, template)
    return f"{prefix}{join}{name}" if prefix else name


def first_free(path: str, taken: Callable[[str], bool], *, join: str = "-", start: int = 1) -> str:
    """Return ``path``, or with ``-v1``, ``-v2`` ... before its extension: the first that is not taken."""
    stem, extension = os.path.splitext(path)
    candidate, version = path, start
    while taken(candidate):
        candidate = f"{stem}{join}v{version}{extension}"
        version += 1
    return candidate
