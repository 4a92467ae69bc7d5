"""Compare the public names of every package with the committed listing, so that none comes or goes unseen.

`python ci/api_diff.py --write` writes the listing anew: its diff is what a reviewer and a changelog need.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

LISTINGS = Path(__file__).parent / "api"
PACKAGES = ["lt-interface", "lt-core", "lt-loggers", "lt-accel"]
# Modules that users import from, besides the packages themselves and those below.
MORE = {"lt-interface": ["lt_interface.errors", "lt_interface.registry", "lt_interface.testing"]}
# Below lt_core each package that lists its names is one to import from, and so is each module of these.
OPEN = {"lt_core.utilities"}


def modules(package: str) -> list[str]:
    """Return the modules whose names a package offers."""
    top = package.replace("-", "_")
    found = [top, *MORE.get(package, [])]
    if package != "lt-core":
        return found
    for module in pkgutil.iter_modules(importlib.import_module(top).__path__, f"{top}."):
        if module.ispkg and hasattr(importlib.import_module(module.name), "__all__"):
            found.append(module.name)
    for name in sorted(OPEN):
        inside = importlib.import_module(name).__path__
        found += [module.name for module in pkgutil.iter_modules(inside, f"{name}.")]
    return sorted(found)


def public(module: ModuleType) -> list[str]:
    """Return the names that a module offers."""
    return sorted(getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")])


def lent(module: ModuleType) -> list[str]:
    """Return the names of classes of other packages that a module offers where those are installed."""
    from lt_interface.registry import CLASSES

    names = {name for group in CLASSES.values() for name in group} - set(public(module))
    found = []
    for name in sorted(names):
        try:
            getattr(module, name)
        except (AttributeError, ImportError):
            continue
        found.append(name)
    return found


def parameters(function: Any) -> str:
    """Return a callable's parameters without their types: those differ in print from Python to Python."""
    try:
        given = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return "(...)"
    words = []
    star = False
    for parameter in given:
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            words.append("*")
        star = star or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        stars = "*" * (parameter.kind is parameter.VAR_POSITIONAL) + "**" * (parameter.kind is parameter.VAR_KEYWORD)
        words.append(f"{stars}{parameter.name}{'' if parameter.default is parameter.empty else '=...'}")
    return f"({', '.join(words)})"


def defined(owner: type) -> dict[str, tuple[type, Any]]:
    """Return the public members that a class, or a base of it that is ours, defines: from which class, and what."""
    found: dict[str, tuple[type, Any]] = {}
    for base in owner.__mro__:
        if base.__module__.split(".")[0].startswith("lt_"):
            mine = {n: (base, v) for n, v in vars(base).items() if not n.startswith("_")}
            found |= {n: at for n, at in mine.items() if n not in found}
    return found


def members(owner: type) -> list[str]:
    """Return a line for each public member of a class."""
    lines = []
    for name, (_, value) in sorted(defined(owner).items()):
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        lines.append(f"    .{name}{parameters(function) if inspect.isfunction(function) else ''}")
    return lines


def listing(package: str) -> list[str]:
    """Return a package's listing, a line a name."""
    lines: list[str] = []
    for name in modules(package):
        module = importlib.import_module(name)
        lines.append(f"# {name}")
        for word in public(module):
            value = getattr(module, word)
            lines.append(f"{word}{parameters(value) if callable(value) else ''}")
            lines += members(value) if inspect.isclass(value) else []
        lines += [f"{word} (lent)" for word in lent(module)]
        lines.append("")
    return lines


def main() -> int:
    differs = False
    LISTINGS.mkdir(exist_ok=True)
    for package in PACKAGES:
        path = LISTINGS / f"{package}.txt"
        now = listing(package)
        if "--write" in sys.argv:
            path.write_text("\n".join(now), encoding="utf-8")
            continue
        then = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        diff = list(difflib.unified_diff(then, now, f"{path.name} (committed)", f"{package} (now)", lineterm="", n=1))
        print(f"{'DIFFERS' if diff else 'ok':>7}  {package}: {sum(bool(x) and x[0] not in '# ' for x in now)} names")
        if diff:
            print(*diff, sep="\n")
            differs = True
    if differs:
        print("If this is meant: python ci/api_diff.py --write, and say so in the package's CHANGELOG.md")
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
