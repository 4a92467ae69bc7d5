"""Paths that users write: of this machine, absolute, and short enough for a file system."""

from __future__ import annotations

import os
import re
from typing import Any

from lt_interface.errors import ConfigError, Problem

__all__ = ["NAME_BYTES", "local_path", "path_problem"]

NAME_BYTES = 255  # the longest name of a file or folder that common file systems take
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")
# What pathlib.Path makes of a URL; a local folder may be named so, but none of these.
_COLLAPSED = re.compile(r"(?:s3|s3a|gs|gcs|hdfs|webhdfs|abfss?|adl|azure?|wasbs?|dbfs|oss|https?|s?ftp|file|memory):/")


def path_problem(where: str, path: str) -> Problem | None:
    """Return what is wrong with a path, or None: an address of another machine, or a name that is too long.

    Args:
        where: The place as the user wrote it.
        path: The path.

    Example:
        >>> print(path_problem("ModelCheckpoint(dirpath='s3://b/x')", "s3://b/x").rule)
        this must be a folder or file of this machine; remote addresses are not supported
        >>> path_problem("ModelCheckpoint(dirpath='x')", "x") is None
        True
    """
    if "\0" in path:
        return Problem(where, "a path holds no zero byte", repr(path))
    if _URL.match(path) or _COLLAPSED.match(path):
        rule = "this must be a folder or file of this machine; remote addresses are not supported"
        fix = "Write a local path, and copy the files or mount the remote folder."
        if path.startswith("file:"):
            fix = f"Write {'/' + path.removeprefix('file:').lstrip('/')!r}."
        return Problem(where, rule, repr(path), fix)
    long = next((name for name in path.split(os.sep) if len(os.fsencode(name)) > NAME_BYTES), None)
    if long is not None:
        got = f"{long[:20] + '...'!r} with {len(os.fsencode(long))} bytes"
        return Problem(where, f"a file's or folder's name has at most {NAME_BYTES} bytes", got, "Choose a shorter one.")
    return None


def local_path(where: str, path: Any) -> str:
    """Return a path of this machine as an absolute one, ``~`` expanded, so that a later ``os.chdir`` moves nothing.

    Args:
        where: The place as the user wrote it, for the error.
        path: Text, bytes or a path object.

    Raises:
        ConfigError: If it is no path, an address such as ``s3://bucket/run``, or has a name that is too long.

    Example:
        >>> local_path("CSVLogger(save_dir='/logs/../runs')", "/logs/../runs").replace(os.sep, "/")[-5:]
        '/runs'
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise ConfigError(Problem(where, "it must be a path", type(path).__name__, is_type=True)) from None
    problem = path_problem(where, text)
    if problem is not None:
        raise ConfigError(problem)
    return os.path.abspath(os.path.expanduser(text))
