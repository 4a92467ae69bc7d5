"""Find plugins by name through entry points, importing only the one that is asked for."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from lt_interface.errors import InterfaceVersionError, PluginError, Problem, UnknownPluginError, nearest
from lt_interface.version import __version__

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "Registry",
    "accelerators",
    "callbacks",
    "checkpoint_ios",
    "clusters",
    "launchers",
    "loggers",
    "precisions",
    "profilers",
    "strategies",
]

T = TypeVar("T")

# What the sibling packages provide, so that a missing one is answered with its command.
SIBLINGS: dict[str, dict[str, str]] = {
    "lt.loggers": {"csv": "lt-core", "tensorboard": "lt-loggers[tensorboard]"},
    "lt.precisions": {"bf16-mixed": "lt-accel"},
}


@lru_cache(maxsize=1)
def _scan() -> dict[str, dict[str, tuple[EntryPoint, ...]]]:
    """Read all entry points of our groups once a process: the scan opens every installed package."""
    from importlib.metadata import entry_points

    found: dict[str, dict[str, list[EntryPoint]]] = {}
    points = entry_points()
    for group in points.groups:
        if not group.startswith("lt."):
            continue
        for point in points.select(group=group):
            same = found.setdefault(group, {}).setdefault(point.name, [])
            if all(p.value != point.value for p in same):  # one package seen twice on sys.path is no conflict
                same.append(point)
    return {g: {n: tuple(p) for n, p in names.items()} for g, names in found.items()}


def fits(version: str, ours: str = __version__) -> bool:
    """Return whether a plugin written for interface ``version`` works with ``ours``.

    Below 1.0 each minor version is its own; from 1.0 on, a plugin needs the same major
    and at most our minor.
    """
    theirs_major, theirs_minor = (int(x) for x in version.split(".")[:2])
    our_major, our_minor = (int(x) for x in ours.split(".")[:2])
    if our_major == 0 or theirs_major == 0:
        return (theirs_major, theirs_minor) == (our_major, our_minor)
    return theirs_major == our_major and theirs_minor <= our_minor


class Registry(Generic[T]):
    """Look up the plugins of one entry-point group.

    Args:
        group: The entry-point group, such as ``lt.strategies``.
        kind: What a plugin of this group is called in messages.
    """

    def __init__(self, group: str, kind: str) -> None:
        self.group = group
        self.kind = kind

    def names(self) -> list[str]:
        """Return the installed names, from metadata alone: nothing is imported."""
        return sorted(_scan().get(self.group, {}))

    def problem(self, name: str, where: str) -> Problem | None:
        """Return what is wrong with a name, or None if exactly one plugin has it."""
        points = _scan().get(self.group, {}).get(name, ())
        if len(points) == 1:
            return None
        if points:
            owners = ", ".join(f"{p.dist.name if p.dist else '?'} ({p.value})" for p in points)
            return Problem(
                where, f"two packages provide the {self.kind} {name!r}: {owners}", fix="Uninstall one of them."
            )
        sibling = SIBLINGS.get(self.group, {}).get(name)
        if sibling:
            return Problem(where, f"this {self.kind} comes with another package", fix=f"Run: pip install '{sibling}'")
        installed = ", ".join(self.names()) or "none"
        known = [*self.names(), *SIBLINGS.get(self.group, {})]
        fix = " ".join(filter(None, [f"Installed: {installed}.", nearest(name, known)]))
        return Problem(where, f"no {self.kind} of that name", fix=fix)

    def get(self, name: str, where: str = "") -> T:
        """Import and return the one plugin of that name.

        Raises:
            UnknownPluginError: If none has it; lists what is installed and the nearest name.
            PluginError: If two packages claim it, or its import fails.
            InterfaceVersionError: If it was written for another version of the interface.
        """
        problem = self.problem(name, where or f"{self.kind} {name!r}")
        if problem is not None:
            raise (PluginError if "two packages" in problem.rule else UnknownPluginError)(problem)
        (point,) = _scan()[self.group][name]
        self._check_version(point)
        try:
            plugin = point.load()
        except Exception as error:
            raise PluginError(
                Problem(
                    where or f"{self.kind} {name!r}",
                    f"{point.value} can not be imported",
                    f"{type(error).__name__}: {error}",
                    f"Repair the package {point.dist.name if point.dist else '?'}.",
                )
            ) from error
        self._check_version(point, getattr(plugin, "interface_version", None))
        return cast("T", plugin)

    def _check_version(self, point: EntryPoint, stated: Any = None) -> None:
        """Refuse a plugin that states, itself or in its requirements, another interface version."""
        if stated is None:
            stated = _required_interface(point)
        if stated is None or fits(str(stated)):
            return
        owner = point.dist.name if point.dist else point.value
        raise InterfaceVersionError(
            Problem(
                f"{self.kind} {point.name!r}",
                f"{owner} was written for interface {stated}, installed is {__version__}",
                fix=f"Run: pip install --upgrade {owner} lt-interface",
            )
        )


def _required_interface(point: EntryPoint) -> str | None:
    """Return the ``lt-interface>=X`` that a plugin's package asks for, if it says so."""
    import re

    for requirement in (point.dist.requires or []) if point.dist else []:
        match = re.match(r"lt[-_.]interface\b[^;]*>=\s*(\d+\.\d+)", requirement)
        if match:
            return match.group(1)
    return None


accelerators: Registry[Any] = Registry("lt.accelerators", "accelerator")
strategies: Registry[Any] = Registry("lt.strategies", "strategy")
precisions: Registry[Any] = Registry("lt.precisions", "precision")
loggers: Registry[Any] = Registry("lt.loggers", "logger")
checkpoint_ios: Registry[Any] = Registry("lt.checkpoint_io", "checkpoint format")
clusters: Registry[Any] = Registry("lt.clusters", "cluster environment")
launchers: Registry[Any] = Registry("lt.launchers", "launcher")
profilers: Registry[Any] = Registry("lt.profilers", "profiler")
callbacks: Registry[Any] = Registry("lt.callbacks", "callback")
