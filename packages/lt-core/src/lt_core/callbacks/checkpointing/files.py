"""Name checkpoint files, find their folder, and remove those that are no longer wanted."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_core.checkpoint.engine_folder import owner_of, remove_folders
from lt_core.checkpoint.find import default_folders
from lt_core.checkpoint.runs import FOLDER
from lt_core.notices import warn
from lt_interface.abilities import fact
from lt_interface.errors import ConfigError, Problem
from lt_interface.paths import path_problem

if TYPE_CHECKING:
    from lt_core.trainer import Trainer

__all__ = [
    "DEFAULT_TEMPLATE",
    "SAFETENSORS",
    "default_folder",
    "fields",
    "first_free",
    "folders_below",
    "format_name",
    "free_path",
]
__all__ += ["length_problems", "link"]
__all__ += ["may_remove", "remove_checkpoint", "template_problem", "warn_of_strangers"]

DEFAULT_TEMPLATE = "{epoch}-{step}"
SAFETENSORS = ".safetensors"
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
        rule = "a brace in the file name is left open or empty"
        return Problem(where, rule, repr(template), 'Write "{epoch}-{val_loss:.2f}".')
    for match in _FIELD.finditer(template):
        spec = match["spec"] or ""
        if not any(_fits(value, spec) for value in (0, 0.0)):
            fix = 'Write a number\'s format, such as "{val_loss:.2f}" or "{epoch:02d}".'
            return Problem(where, f"the format of the field {match['name']!r} fits no number", repr(spec), fix)
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
                where = f"ModelCheckpoint(filename={template!r})"
                raise ConfigError(Problem(where, f"{name!r} does not fit its format", repr(value))) from None
            text = format(int(value), spec)  # a metric that counts, asked for as {name:d}
        # A slash would make a folder of the first part of "val/loss".
        return (f"{name}{equals}{text}" if auto_insert else text).replace("/", "_").replace(os.sep, "_")

    name = _FIELD.sub(fill, template)
    return f"{prefix}{join}{name}" if prefix else name


def length_problems(where: str, template: str | None, auto_insert: bool, equals: str, extension: str) -> list[Problem]:
    """Return what is wrong with the names that a template gives where the numbers are long.

    Args:
        where: The place as the user wrote it.
        template: Text with fields.
        auto_insert: Whether a field shows its name.
        equals: What stands between a name and its value.
        extension: The files' extension.
    """
    template, samples = DEFAULT_TEMPLATE if template is None else template, (-1e-6 / 3, 1_000_000)
    names = [
        format_name(template, dict.fromkeys(fields(template), value), auto_insert=auto_insert, equals=equals)
        for value in samples
        if all(_fits(value, match["spec"] or "") for match in _FIELD.finditer(template))
    ]
    longest = max(names or [template], key=lambda name: len(os.fsencode(name)))
    problem = path_problem(where, f"{longest}-v10{extension}")
    return [] if problem is None else [problem]


def folders_below(folder: str, template: str | None) -> list[str]:
    """Return the folders in a folder that a template's own slashes lead to, as far as they are there."""
    depth = _FIELD.sub("", template or "").count("/")
    found = [path for i in range(1, depth + 1) for path in sorted(Path(folder).glob("/".join("*" * i)))]
    return [str(path) for path in found if path.is_dir()]


def first_free(path: str, taken: Callable[[str], bool], *, join: str = "-", start: int = 1) -> str:
    """Return ``path``, or with ``-v1``, ``-v2`` ... before its extension: the first that is not taken."""
    stem, extension = os.path.splitext(path)
    candidates = chain([path], (f"{stem}{join}v{version}{extension}" for version in count(start)))
    return next(candidate for candidate in candidates if not taken(candidate))


def free_path(trainer: Trainer, path: str, own: str, join: str, start: int) -> str:
    """Return the path, with a version if another file of that name exists or is about to be written.

    Args:
        trainer: The trainer whose open requests count.
        path: The wanted path.
        own: A path that may be replaced.
        join: What joins the version.
        start: The first version.
    """
    requested = set(trainer.requested_checkpoints)

    def taken(candidate: str) -> bool:
        return candidate != own and (candidate in requested or os.path.lexists(candidate))

    return first_free(path, taken, join=join, start=start)


def default_folder(trainer: Trainer) -> str:
    """Return ``<first logger's run folder>/checkpoints``, or ``<default_root_dir>/checkpoints`` without a logger."""
    version = fact(trainer.loggers[0], "version") if trainer.loggers else None
    return str(default_folders(trainer, version)[-1])


def warn_of_strangers(folder: str, own: Iterable[str]) -> None:
    """Warn where the folder holds anything that is not this callback's own."""
    if not os.path.isdir(folder):
        return
    ours = {os.path.basename(path) for path in own} | {FOLDER}
    if any(owner_of(name) not in ours and not name.startswith("metrics.journal") for name in os.listdir(folder)):
        warn(f"The checkpoint folder {folder} exists and is not empty.")


def may_remove(path: str, current: str, folder: str | None, resumed: str | None) -> bool:
    """Return whether a checkpoint that was superseded may be deleted.

    It may not where it is the new one itself, where the run was resumed from it, or where it
    lies outside the folder that the callback writes to.
    """
    is_current = not path or os.path.abspath(path) == os.path.abspath(current)
    if is_current or (resumed and os.path.realpath(path) == os.path.realpath(resumed)):
        return False
    return folder is not None and Path(os.path.abspath(folder)) in Path(os.path.abspath(path)).parents


def remove_checkpoint(trainer: Trainer, path: str, folder: str | None = None) -> None:
    """Delete a checkpoint, or the link to one; a disk that refuses gives a warning, never a stop.

    Args:
        trainer: The trainer whose format knows how.
        path: The checkpoint.
        folder: The folder of all; those in it that led to the file go too when they are empty.
    """
    try:
        trainer.remove_checkpoint(path)
    except OSError as error:
        warn(f"The old checkpoint {path} could not be removed: {error}")
    above = Path(path).parent
    with suppress(OSError):
        while folder is not None and Path(folder) in above.parents:
            above.rmdir()
            above = above.parent


def link(target: str, path: str) -> bool:
    """Make ``path`` a relative link to ``target`` in one step; where links are refused, a copy.

    Returns:
        Whether it is there; a disk that refuses gives a warning, and what was there stays.
    """
    temporary = f"{path}.link-{os.getpid()}"
    try:
        _discard(temporary)
        try:
            os.symlink(os.path.relpath(target, os.path.dirname(path)), temporary)
        except OSError:
            (shutil.copytree if os.path.isdir(target) else shutil.copy)(target, temporary)
        if os.path.isdir(path):
            _discard(path)  # a folder cannot be replaced by renaming
        os.replace(temporary, path)
    except OSError as error:
        warn(f"The checkpoint {path} could not be linked to {target}: {error}")
        with suppress(OSError):
            _discard(temporary)
        return False
    remove_folders(path)
    return True


def _discard(path: str) -> None:
    if os.path.lexists(path):
        (shutil.rmtree if os.path.isdir(path) and not os.path.islink(path) else os.unlink)(path)
