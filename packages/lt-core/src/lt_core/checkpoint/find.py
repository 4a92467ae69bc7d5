"""Find the newest valid checkpoint, by the counters in the files and not by their dates."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lt_core.checkpoint.engine_folder import KEY
from lt_core.checkpoint.format.reading import peek, verify

__all__ = ["find_last"]

_SUFFIXES = {".ckpt", ".safetensors"}


def find_last(folders: Iterable[str | os.PathLike[str]], parameters: str | None = None, io: Any = None) -> Path | None:
    """Return the newest valid checkpoint of some folders, or None.

    Newest by the counters in the files: steps, then epochs and batches completed, then the counter of saves.
    Damaged files are named in one warning and passed over.

    Args:
        folders: Where to look; folders below them are not searched.
        parameters: Only files of a model with this `parameter_signature` count; any if None.
            So do files whose weights an engine wrote beside them, and those of a format that notes none.
        io: The format that is tried first; None for those that are known here.
    """
    bad: list[str] = []
    found: dict[Path, tuple[Any, ...]] = {}
    for path in _candidates(folders):
        try:
            header = peek(path, io)
        except Exception as error:  # a format of the user's may raise whatever it likes
            bad += [str(error)] if path.is_file() else []  # a folder may be anything
            continue
        noted = header.get("parameters")
        if parameters is None or noted in (None, parameters) or KEY in header.get("keys", ()):
            found[path] = _age(header.get("progress"), path)
    best = None
    for path in sorted(found, key=found.__getitem__, reverse=True):
        try:
            verify(path, io)
        except Exception as error:
            bad.append(str(error))
        else:
            best = path
            break
    if bad:
        from lt_core.notices import warn

        taken = f"Taken instead: {best}." if best is not None else "No valid one was found."
        warn("These checkpoints cannot be used and are passed over. " + " ".join(bad) + " " + taken)
    return best


def _candidates(folders: Iterable[str | os.PathLike[str]]) -> list[Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            path = Path(folder) / name
            if path.suffix in _SUFFIXES and not name.startswith(".") and path.exists():
                # A link stands for its file: the file's own name is the one to go on with.
                found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _age(progress: Any, path: Path) -> tuple[Any, ...]:
    known = progress if isinstance(progress, dict) else {}
    counts = [known.get(key, 0) for key in ("step", "epoch", "batch", "save_counter")]
    try:
        date = path.stat().st_mtime_ns
    except OSError:
        date = 0
    # With equal counters a file with a name of its own is newer than its copy "last".
    return (*(count if type(count) is int else 0 for count in counts), not path.stem.startswith("last"), date)
