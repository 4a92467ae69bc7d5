"""Describe what is installed and which devices there are, for bug reports."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any

from lt_core.version import __version__
from lt_interface import registry
from lt_interface.accelerator import DescribesDevices

__all__ = ["describe"]

_OWN = f"lt-core {__version__}"
_PREFIX = "lt."  # of the groups of entry points in which plugins are found
_VARIABLES = re.compile(
    r"PL_TRAINER_.*|LT_.*|CUDA_VISIBLE_DEVICES|OMP_NUM_THREADS|(LOCAL_|NODE_)?RANK|(LOCAL_)?WORLD_SIZE|SLURM_(JOB_ID|NTASKS)"
)


def describe() -> str:
    """Return a page of text: packages, what they need, plugins, devices and variables; no secret is in it."""
    found = entry_points()
    groups = sorted(group for group in found.groups if group.startswith(_PREFIX))
    points = [point for group in groups for point in found.select(group=group)]
    packages = {point.dist.name: point.dist for point in points if point.dist is not None}
    rows = [
        ("packages", [_versioned(name, each.version) for name, each in sorted(packages.items())] or [_OWN]),
        ("absent", sorted(set(_absent()))),
        ("python", [f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores"]),
        ("needs", sorted({line for package in packages.values() for line in _needs(package)}, key=str.casefold)),
        *((group.removeprefix(_PREFIX), _plugins(points, group)) for group in groups),
        ("devices", list(_devices())),
        ("variables", [f"{name}={value}" for name, value in sorted(os.environ.items()) if _VARIABLES.fullmatch(name)]),
    ]
    return "\n".join(f"{title:<14}{', '.join(words)}" for title, words in rows if words)


def _versioned(name: str, number: str) -> str:
    return f"{name} {number}"


def _needs(package: Distribution) -> Iterator[str]:
    """Yield what a package or one of its extras needs and what is here of it, each with its version."""
    for requirement in package.requires or ():
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        try:
            yield _versioned(name, version(name))
        except PackageNotFoundError:
            continue


def _plugins(points: list[EntryPoint], group: str) -> list[str]:
    return sorted({point.name for point in points if point.group == group})


def _absent() -> Iterator[str]:
    """Yield the commands that install what the sibling packages would bring."""
    for kind in vars(registry).values():
        if isinstance(kind, registry.Registry):
            yield from kind.absent().values()


def _devices() -> Iterator[str]:
    """Yield each device, and why an accelerator has none; one that cannot be asked says so."""
    for name in registry.accelerators.names():
        try:
            accelerator: Any = registry.accelerators.get(name)()
            count = accelerator.device_count() if accelerator.is_available() else 0
            describes = isinstance(accelerator, DescribesDevices)
            found = [accelerator.describe(i) if describes else str(accelerator.device(i)) for i in range(count)]
            missing = accelerator.missing() if describes and not found else None
            yield f"{name}: {', '.join(found) or missing or 'none'}"
        except Exception as error:  # a driver may raise whatever it likes
            yield f"{name}: {type(error).__name__}: {error}"
